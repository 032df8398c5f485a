"""Schedulers whose configuration is unusual: as the pipeline, or refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from families import FAMILIES

from guardlit.errors import GuardlitError

FILE = "scheduler/scheduler_config.json"


@pytest.fixture
def changed(tiny, tmp_path: Path):
    """A folder of a family whose scheduler has other settings."""

    def make(family: str, **settings: object) -> Path:
        folder = tmp_path / family
        shutil.copytree(tiny(family), folder)
        (folder / FILE).write_text(json.dumps(json.loads((folder / FILE).read_text()) | settings))
        return folder

    return make


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings", [{"use_flow_sigmas": True}, {"shift_terminal": 0.02}, {"use_karras_sigmas": True}], ids=str
)
def test_unusual_settings_give_the_pipelines_schedule(changed, family: str, settings: dict[str, object]):
    ours, pipelines = FAMILIES[family].schedules(changed(family, **settings), 256, 4)
    assert torch.equal(ours.float(), pipelines)


def test_flow_sigmas_make_a_difference(changed, tiny):
    flux = FAMILIES["flux"]
    assert not torch.equal(
        flux.schedules(changed("flux", use_flow_sigmas=True), 256, 4)[0], flux.schedules(tiny("flux"), 256, 4)[0]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_image_seq_len": None}, "base_image_seq_len is None; a number is needed"),
        ({"max_image_seq_len": None}, "max_image_seq_len is None; a number is needed"),
        ({"base_shift": "x"}, "base_shift is 'x'; a number is needed"),
        ({"max_shift": None}, "max_shift is None; a number is needed"),
        ({"max_image_seq_len": 256}, "base_image_seq_len must be below max_image_seq_len"),
    ],
)
def test_a_shift_without_its_numbers_is_refused(changed, settings: dict[str, object], message: str):
    folder = changed("flux", **settings)
    policy = FAMILIES["flux"].policy(str(folder), 256, cache=None)
    policy.load()
    with pytest.raises(GuardlitError) as caught:
        policy.sigmas(4)
    assert str(caught.value) == f"{folder / FILE}: {message}"


def test_numbers_of_a_shift_that_is_not_used_may_be_missing(changed):
    folder = changed("flux", use_dynamic_shifting=False, base_image_seq_len=None, shift=1.0)
    policy = FAMILIES["flux"].policy(str(folder), 256, cache=None)
    policy.load()
    assert policy.sigmas(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
