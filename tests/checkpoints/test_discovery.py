"""The newest checkpoint is found, and the one before it where it is corrupt."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from corrupting import at, flip, halve, spoil
from runs import differing, guardlit

from guardlit.checkpoints.discovery import DATA_KEY, intact_before, newest_intact, require_intact
from guardlit.data.datamodule import PromptDataModule
from guardlit.errors import GuardlitError


def test_the_newest_is_the_furthest_of_the_latest_run_whatever_the_clock_says(tmp_path: Path):
    written = [
        at(tmp_path, 5),
        at(tmp_path, 50),
        at(tmp_path, 4, version=2),
        at(tmp_path, 4, 3, 2),
        at(tmp_path, 9, version=10),
    ]
    for age, path in enumerate(written):
        os.utime(path, (2e9 - age, 2e9 - age))
    for path in reversed(written):
        assert newest_intact(tmp_path) == path
        path.unlink()
    with pytest.raises(GuardlitError, match=r"^--ckpt_path last: no checkpoint under .*/version_\*/checkpoints$"):
        newest_intact(tmp_path)


def test_a_metric_with_a_slash_in_its_name_hides_no_checkpoint(tmp_path: Path):
    """`{val/reward:.3f}` in a checkpoint's name makes a folder."""
    older = at(tmp_path, 3)
    newest = at(tmp_path, 4).rename(_below(older.parent / "epoch=1-val/reward=0.650.ckpt"))
    assert newest_intact(tmp_path) == newest
    left_over = newest.parent / ".reward=0.7.ckpt.elsewhere.7.tmp"
    left_over.write_bytes(b"half")
    os.utime(left_over, (1e9, 1e9))
    flip(newest, "archive/data/0")
    assert intact_before(newest) == older
    at(tmp_path, 5, version=1)  # whose writer removes what others left
    assert not left_over.exists()


def test_where_only_an_earlier_version_s_run_is_its_checkpoint_is_named(tmp_path: Path):
    before = at(tmp_path, 3).rename(_below(tmp_path / "project/abc/checkpoints/round_00000.ckpt"))
    with pytest.raises(
        GuardlitError, match=f"^--ckpt_path last: no checkpoint under .*; if you mean {before}, give its"
    ):
        newest_intact(tmp_path)


def _below(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_corrupt_checkpoint_is_passed_over_with_a_warning(tmp_path: Path):
    oldest, older, newest = at(tmp_path, 3), at(tmp_path, 4), at(tmp_path, 4, 2, version=1)
    flip(newest, "archive/data/0")
    with pytest.warns(UserWarning, match=f"{newest} is corrupt and not used .the checksum.*; {older} is used instead"):
        assert newest_intact(tmp_path) == older
    spoil(older, halve)
    with pytest.warns(UserWarning, match="is corrupt and not used") as warned:
        assert newest_intact(tmp_path) == oldest
    assert len(warned) == 2
    oldest.write_bytes(b"")
    with pytest.raises(GuardlitError, match=f"none of the checkpoints under {tmp_path} is intact: ") as error:
        newest_intact(tmp_path)
    assert all(str(path) in str(error.value) for path in (oldest, older, newest))


def test_a_corrupt_checkpoint_is_refused_and_the_one_before_it_named(tmp_path: Path):
    oldest, older, newest = at(tmp_path, 3), at(tmp_path, 4), at(tmp_path, 5, version=1)
    flip(older, "archive/data/0")
    with pytest.raises(GuardlitError, match=f"{older} is corrupt.*; the one before it is intact: {oldest}$"):
        require_intact(older)
    flip(newest, "archive/data/0")
    assert intact_before(newest) == oldest
    oldest.unlink()
    with pytest.raises(GuardlitError, match=f"{older} is corrupt.*is wrong\\)$"):
        require_intact(older)


@pytest.mark.parametrize(
    "file",
    ["raw/pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json", "model_index.json"],
)
def test_exported_weights_are_named_as_such(tmp_path: Path, file: str):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"{}")
    with pytest.raises(GuardlitError, match=r"holds exported weights, not a checkpoint: give a LoRA as .*lora\.start"):
        require_intact(tmp_path)
    if file.endswith(".safetensors"):
        with pytest.raises(GuardlitError, match="holds exported weights, not a checkpoint"):
            require_intact(tmp_path / file)


def test_a_run_resumes_from_the_one_before_a_corrupt_one(run, runs: Path, capsys):
    path, checkpoints = run
    newest = flip(runs / "version_0/checkpoints" / checkpoints[-1].name)
    again = ("fit", "--config", path, "--trainer.default_root_dir", runs, "--ckpt_path")
    assert guardlit(*again, newest) == 2
    before = newest.with_name(checkpoints[-2].name)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("guardlit fit: error: ")
    assert line.endswith(f"the one before it is intact: {before}")
    with pytest.warns(UserWarning, match=f"{newest} is corrupt and not used"):
        assert guardlit(*again, "last") == 0
    assert json.loads((runs / "version_1/run.json").read_text())["resumed_from"] == str(before)
    assert differing(checkpoints[-1], runs / "version_1/checkpoints" / newest.name) == []


def test_the_data_s_key_is_the_data_module_s_name():
    """Under which Lightning stores its state."""
    assert PromptDataModule.__qualname__ == DATA_KEY
