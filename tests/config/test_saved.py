"""A run's own `config.yaml` goes into every command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from runs import config, guardlit

from guardlit.commands.lightning_cli import settings_of
from guardlit.config import modules
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
    assert {path.name for path in out.iterdir()} == {"000_a-cat_0.png", "grid.png", "metadata.jsonl", "raw", "ema"}
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


@pytest.mark.parametrize("package", [False, True])
def test_modules_of_the_run_are_found_from_elsewhere(
    package: bool, sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A reward next to the first configuration is next to none of the runs, nor in another current folder."""
    name = f"mine_{package}"
    module = tmp_path / (f"{name}/__init__.py" if package else f"{name}.py")
    module.parent.mkdir(exist_ok=True)
    module.write_text("from guardlit.rewards import JPEGCompressibility\n\n\nclass Mine(JPEGCompressibility): ...\n")
    path = config(tmp_path, sd3_folder, trainer__max_epochs=1, model__reward=f"{name}.Mine")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    found = list(sys.path)
    runs = tmp_path / "runs"
    for number, given in enumerate([path, runs / "version_0/config.yaml", runs / "version_1/config.yaml"]):
        monkeypatch.setattr(sys, "path", list(found))
        sys.modules.pop(name, None)
        monkeypatch.setattr(modules, "_searched", {})
        resume = ("--ckpt_path", "last", "--trainer.max_epochs", number + 1) if number else ()
        assert guardlit("fit", "--config", given, *resume) == 0
        facts = json.loads((runs / f"version_{number}/run.json").read_text())
        assert str(tmp_path) in facts["module_folders"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"module_folders": "here"}', '{"module_folders": [1, null]}'])
def test_another_run_json_adds_no_folder(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(modules, "_searched", {})
    (tmp_path / "run.json").write_text(text)
    modules.make_importable([tmp_path / "config.yaml"])
    assert sys.path == [str(Path.cwd()), str(tmp_path)]
