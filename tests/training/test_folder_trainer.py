"""Every run has one folder with all of it, whatever its loggers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import script
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from runs import PROMPTS

import guardlit as gl
from guardlit.training.export import ExportAtEnd

ALL = {"run.json", "batches.txt", "schedule.csv", "metrics.csv", "checkpoints", "export", "ratio"}
"""Of a run with `ExportAtEnd` and `RatioDistribution`."""


class Constant(Logger):
    """A logger without a folder, whose version never changes."""

    name, version = "constant", "0.1"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep nothing."""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing."""


def wandb(folder: Path) -> Logger:
    """W&B without a network."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(project="guard", save_dir=folder, offline=True)


LOGGERS = {
    "none": lambda folder: False,
    "default": lambda folder: None,
    "csv": lambda folder: CSVLogger(folder, name="", version=""),
    "own": lambda folder: [Constant(), TensorBoardLogger(folder / "boards", version=0)],
    "wandb": wandb,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the prompts of a run."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


def train(folder: Path, model: Path, logger: object, **arguments: Any) -> gl.Trainer:
    """One round, in `folder/script`."""
    from guardlit_callbacks import RatioDistribution

    callbacks = (RatioDistribution(draw_every=0), ExportAtEnd())
    return script.train(folder, model, *callbacks, logger=logger, **{"max_epochs": 1, **arguments})


def state(folder: Path) -> dict[Path, bytes]:
    """Contents of all files."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", LOGGERS)
def test_two_runs_have_two_folders_and_the_last_is_resumed(kind: str, sd3_folder: Path, folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    make, root = LOGGERS[kind], folder / "script"
    first = train(folder, sd3_folder, make(folder / "logs"))
    before = state(root / "version_0")
    second = train(folder, sd3_folder, make(folder / "logs"))
    assert [trainer.log_dir for trainer in (first, second)] == [str(root / f"version_{k}") for k in (0, 1)]
    for run in root.glob("version_*"):
        assert {path.name.partition(".out.")[0] for path in run.iterdir()} - {"events", "hparams.yaml"} == ALL
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["round_00001.ckpt"]
        assert [path.name for path in (run / "ratio").glob("*.npz")] == ["round_00001.npz"]
        assert list(csv.DictReader((run / "metrics.csv").open()))
    assert state(root / "version_0") == before
    resumed = train(folder, sd3_folder, make(folder / "logs"), ckpt_path="last", max_epochs=2)
    facts = json.loads((root / "version_2/run.json").read_text())
    assert facts["resumed_from"] == str(root / "version_1/checkpoints/round_00001.ckpt")
    assert resumed.global_step == 8
    assert {path.name for path in root.iterdir()} == {"version_0", "version_1", "version_2"}


def test_the_users_logger_stays_the_trainers_first(sd3_folder: Path, folder: Path):
    mine = Constant()
    trainer = train(folder, sd3_folder, mine)
    assert trainer.logger is mine
    assert [type(logger).__name__ for logger in trainer.loggers] == ["Constant", "MetricsFile"]


def test_a_validation_before_the_training_has_a_folder_too_and_neither_writes_into_the_others(
    sd3_folder: Path, folder: Path
):
    trainer, module, data = script.build(folder, sd3_folder, max_epochs=1)
    trainer.sample(module, data, prompts=["a cat"], n=1, out=str(folder / "images"))
    assert trainer.log_dir is None
    trainer.validate(module, datamodule=data)
    assert trainer.log_dir == str(folder / "script/validate_0")
    before = state(folder / "script/validate_0")
    assert [path.name for path in before] == ["metrics.csv"]
    trainer.fit(module, datamodule=data)
    assert trainer.log_dir == str(folder / "script/version_0")
    assert (folder / "script/version_0/checkpoints/round_00001.ckpt").is_file()
    trainer.validate(module, datamodule=data)  # of what was trained: it belongs to that run
    assert {path.name for path in (folder / "script").iterdir()} == {"validate_0", "version_0"}
    assert state(folder / "script/validate_0") == before


def test_a_folder_that_cannot_be_made_is_one_line(sd3_folder: Path, folder: Path):
    (folder / "script").write_text("a file")
    with pytest.raises(gl.GuardlitError, match=f"^output folder {folder / 'script'} cannot be written: File exists$"):
        train(folder, sd3_folder, None)
