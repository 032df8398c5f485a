"""Loggers by short names, from options, files and scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from runs import config

import guardlit as gl
from guardlit.cli import main
from guardlit.commands.lightning_cli import settings_of
from guardlit.config.replacing import LOGGERS
from guardlit.errors import GuardlitError
from guardlit.training.logs import in_folder

WANDB = "lightning.pytorch.loggers.WandbLogger"
TENSORBOARD = "guardlit.training.logs.in_folder.TensorBoard"


def logger(folder: Path, *options: str, **settings: object) -> object:
    """What `trainer.logger` comes to; W&B's without its arguments that are null."""
    run = config(folder, folder, **settings)
    found = settings_of(["fit", "--config", str(run), *options])["trainer"]["logger"]
    return [_short(item) for item in found] if isinstance(found, list) else _short(found)


def _short(found: dict[str, object]) -> object:
    arguments = {key: value for key, value in found.get("init_args", {}).items() if value}
    return (found["class_path"], {k: v for k, v in arguments.items() if k in ("offline", "id", "resume", "project")})


@pytest.mark.parametrize("name", LOGGERS)
def test_a_name_is_its_class(name: str, tmp_path: Path):
    assert logger(tmp_path, "--trainer.logger", name) == (LOGGERS[name], {})
    assert logger(tmp_path, trainer__logger=name) == (LOGGERS[name], {})
    assert logger(tmp_path, trainer__logger={"class_path": name}) == (LOGGERS[name], {})


def test_a_name_takes_the_options_of_its_class(tmp_path: Path):
    more = ["--trainer.logger.offline", "true", "--trainer.logger.id", "x", "--trainer.logger.resume", "allow"]
    assert logger(tmp_path, "--trainer.logger", "wandb", *more) == (
        WANDB,
        {"offline": True, "id": "x", "resume": "allow"},
    )
    assert logger(tmp_path, "--trainer.logger", "WandbLogger", "--trainer.logger.project", "p") == (
        WANDB,
        {"project": "p"},
    )


def test_names_stand_in_a_list(tmp_path: Path):
    both = [(WANDB, {}), (TENSORBOARD, {})]
    assert logger(tmp_path, "--trainer.logger", "[wandb, tensorboard]") == both
    assert logger(tmp_path, trainer__logger=["wandb", {"class_path": "tensorboard"}]) == both


def test_a_misspelled_name_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config(tmp_path, tmp_path)), "--trainer.logger", "wandbb"])
    said = capsys.readouterr().err
    assert said.endswith("found 'wandbb'; did you mean wandb?\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "others", "tensorboard"),
    [
        (None, [], True),
        (True, [], True),
        (False, [], False),
        ("csv", [], False),
        ("tensorboard", [], True),
        (["tensorboard", "csv"], [], True),
    ],
)
def test_a_script_takes_names_too(given: object, others: list[type], tensorboard: bool):
    trainer = gl.Trainer(accelerator="cpu", logger=given)
    assert [type(x) for x in trainer.loggers] == others
    assert in_folder.split(in_folder.by_name(given))[1] == tensorboard


def test_a_wrong_name_in_a_script_is_one_line():
    with pytest.raises(GuardlitError, match=r"^trainer.logger: CSVLogger has no defaults \(.*'save_dir'\); give one"):
        gl.Trainer(accelerator="cpu", logger="CSVLogger")
    with pytest.raises(GuardlitError, match=r"^trainer.logger: 'wandbb' is no logger: did you mean wandb\?$"):
        gl.Trainer(accelerator="cpu", logger="wandbb")


def test_a_script_mixes_names_and_loggers(tmp_path: Path):
    own = CSVLogger(tmp_path)
    trainer = gl.Trainer(accelerator="cpu", logger=["tensorboard", own])
    assert trainer.loggers == [own]  # TensorBoard's has its place in the folder that `fit` makes
