"""docs/python.md: its code runs from top to bottom, with fewer rounds, and does what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import guardlit

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PAGE = (Path(__file__).parents[2] / "docs/python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

FEWER = {"images_per_prompt=16": "images_per_prompt=4", "micro_batch=40": "micro_batch=10"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The folder that the page's code ran in, the names that it left, and what it printed last."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("page")
    names: dict[str, Any] = {"__name__": "page"}
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        for number, block in enumerate(BLOCKS):
            quick = re.sub(r"max_epochs=(\d+)", lambda m: f"max_epochs={2 if m[1] == '6' else 1}", block)
            for full, few in FEWER.items():
                quick = quick.replace(full, few)
            exec(compile(quick, f"block {number + 1} of docs/python.md", "exec"), names)
    return folder, names, printed.getvalue()


def test_the_run_leaves_what_the_page_says(executed):
    folder, _, _ = executed
    run = folder / "runs/digits/version_0"
    assert (run / "metrics.csv").is_file()
    assert (run / "run.json").is_file()
    assert len(list((run / "checkpoints").glob("*.ckpt"))) == 1  # of one round
    assert len(list((folder / "samples").glob("*.png"))) == 5


def test_the_reward_and_the_callback_are_logged(executed):
    folder, _, _ = executed
    header = (folder / "runs/bright/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"average_reward/brightness", "average_reward/digitprobability", "train/good"} <= set(header)


def test_the_resumed_run_trains_its_second_round_alone(executed):
    folder, _, _ = executed
    (resumed,) = (folder / "runs/bright/version_1/checkpoints").glob("*.ckpt")
    assert torch.load(resumed, weights_only=True)["global_step"] == 8
    assert resumed.name == "round_00002.ckpt"


def test_the_export_is_a_lora_that_diffusers_loads(executed):
    from diffusers import StableDiffusion3Pipeline

    folder, _, _ = executed
    state = StableDiffusion3Pipeline.lora_state_dict(folder / "lora/raw")
    assert any("lora" in name for name in state)
    assert len(list((folder / "threes").glob("*.png"))) == 9


def test_the_round_by_hand_makes_an_update(executed):
    _, names, printed = executed
    assert names["out"].log_ratio.abs().max() == 0
    assert float(names["norm"]) > 0
    assert names["optimizer"].state
    assert printed.splitlines()[-1].startswith("reward 0.")
    assert printed.splitlines()[-1].endswith("log ratio 0.0e+00")


def test_the_script_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (script,) = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    quick = script.replace("max_epochs=25", "max_epochs=1")
    for full, few in {
        '"images_per_prompt": 16': '"images_per_prompt": 4',
        '"micro_batch": 40': '"micro_batch": 10',
    }.items():
        assert full in quick
        quick = quick.replace(full, few)
    monkeypatch.chdir(tmp_path)
    exec(compile(quick, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "runs/digits/version_0/metrics.csv").is_file()
    assert len(list((tmp_path / "samples").glob("*.png"))) == 5


def test_the_defaults_on_the_page_are_those_of_the_code():
    from guardlit.training.defaults import DEFAULTS

    for name, value in DEFAULTS.items():
        if name not in ("accelerator", "default_root_dir"):
            assert f"`{name}={value}`" in PAGE, name


def test_the_script_on_top_is_the_configuration_of_the_tiny_world():
    """Module and data of the first block, built and compared with those of the YAML file."""
    from guardlit.commands.lightning_cli import parse

    parser, config = parse(["fit", "--config", str(Path(__file__).parents[2] / "configs/tiny_digits.yaml")])
    built = parser.instantiate_classes(config)["fit"]
    names: dict[str, Any] = {}
    exec(BLOCKS[0].partition("trainer = ")[0], names)
    module, data = names["module"], names["data"]
    for attribute in ("rollout", "evaluation", "advantage", "kl", "old_velocity"):
        assert getattr(module, attribute) == getattr(built.model, attribute), attribute
    for attribute in ("sde", "objective"):
        one, other = getattr(module, attribute), getattr(built.model, attribute)
        assert (type(one), vars(one)) == (type(other), vars(other))
    assert data.planned(9, 1, ()) == built.data.planned(9, 1, ())
    assert (data.seed, data.rollout_batch) == (built.data.seed, built.data.rollout_batch)
    assert isinstance(module, guardlit.GRPOModule)
