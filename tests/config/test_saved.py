"""A run's own `config.yaml` goes into every command."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from runs import config, guardlit

from guardlit.commands.lightning_cli import settings_of
from guardlit.config.saved import SECTIONS, without_options

COMMANDS = ("fit", "validate", "sample", "export", "evaluate", "ablate")
GOLD = ("--gold.scorers", '{"jpeg": {"class_path": "JPEGCompressibility"}}')


@pytest.fixture(scope="module")
def saved(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`config.yaml` of a run that was resumed, with a checkpoint next to it."""
    folder = tmp_path_factory.mktemp("saved")
    path = config(folder, sd3_folder, trainer__max_epochs=1)
    assert guardlit("fit", "--config", path) == 0
    assert guardlit("fit", "--config", path, "--ckpt_path", "last", "--trainer.max_epochs", 2) == 0
    return folder / "runs/version_1/config.yaml"


def test_it_holds_the_settings_and_no_option_of_fit(saved: Path):
    assert tuple(yaml.safe_load(saved.read_text())) == SECTIONS


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("version", ["now", "before"])
def test_every_command_reads_it(command: str, version: str, saved: Path, tmp_path: Path):
    settings = yaml.safe_load(saved.read_text())
    if version == "before":  # as LightningCLI writes it, of a run that was resumed
        settings |= {"base": None, "ckpt_path": "runs/version_0/checkpoints/round_00000.ckpt", "weights_only": None}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    found = settings_of([command, "--config", str(path), *(GOLD if command == "evaluate" else ())])
    for section in SECTIONS:
        assert found[section] == settings[section], section
    if version == "before" and command in ("fit", "validate", "sample", "export", "ablate"):
        assert found["ckpt_path"] == settings["ckpt_path"]


def test_images_weights_and_scores_are_made_with_it(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = saved.parent / "checkpoints/round_00002.ckpt"
    here = ("--config", saved, "--ckpt_path", checkpoint)
    out = tmp_path / "out"
    assert guardlit("sample", *here, "--prompts", '["a cat"]', "--n", 1, "--out", out) == 0
    assert guardlit("export", *here, "--out", out) == 0
    assert guardlit("validate", *here) == 0
    assert {path.name for path in out.iterdir()} == {"000_a-cat_0.png", "grid.png", "raw", "ema"}
    runs = saved.parent.parent
    assert {path.name for path in runs.iterdir()} == {"version_0", "version_1", "validate_0"}
    assert tuple(yaml.safe_load((runs / "validate_0/config.yaml").read_text())) == SECTIONS
    assert guardlit("plan", "--config", saved) == 0
    assert "2 rounds" in capsys.readouterr().out


def test_only_options_that_the_command_lacks_are_left_out():
    text = "ckpt_path: a.ckpt\nmodel:\n  verbose: 1\nverbose: true\nweights_only: null\ndata: {}\n"
    assert yaml.safe_load(without_options(text, {"ckpt_path"})) == {
        "ckpt_path": "a.ckpt",
        "model": {"verbose": 1},
        "data": {},
    }
    assert without_options("a: [ckpt_path:", set()) == "a: [ckpt_path:"  # the parser says what is wrong


def test_an_option_of_another_command_is_still_refused_on_the_command_line(saved: Path, capsys):
    assert guardlit("evaluate", "--config", saved, *GOLD, "--weights_only", "true") == 2
    assert "weights_only" in capsys.readouterr().err
