"""`guardlit.Trainer`: a script and the command line are the same run."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import script
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from runs import config, differing, guardlit, newest

import guardlit as gl
from guardlit.checkpoints.io import SafeCheckpointIO
from guardlit.training.progress_bar import RoundProgress
from guardlit.training.recovery.signals import SignalGuard
from guardlit.training.round_checkpoint import RoundCheckpoint
from guardlit.training.run_folder import RunFolder

CALLBACKS = [
    "RankWatchdog",
    "TrainableEMA",
    "RoundProgress",
    "SignalGuard",
    "RunFolder",
    "LoggedSettings",
    "Dashboard",
    "ClosingBlock",
    "RoundCheckpoint",
]


@pytest.fixture(scope="module")
def from_yaml(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the command line, with its prompts."""
    folder = tmp_path_factory.mktemp("yaml")
    assert guardlit("fit", "--config", config(folder, sd3_folder)) == 0
    return folder


def columns(folder: Path) -> set[str]:
    """What a run has logged."""
    with (folder / "metrics.csv").open() as file:
        return set(next(csv.reader(file)))


def test_a_script_and_the_command_line_train_equal_weights(from_yaml: Path, sd3_folder: Path):
    trainer = script.train(from_yaml, sd3_folder)
    one, other = (from_yaml / name / "version_0" for name in ("runs", "script"))
    assert Path(trainer.log_dir) == other
    assert differing(newest(one), newest(other)) == []
    states = [torch.load(newest(folder), weights_only=True)["callbacks"].keys() for folder in (one, other)]
    assert {key.partition("{")[0] for key in states[0]} == {key.partition("{")[0] for key in states[1]}
    assert columns(one) == columns(other)
    files = [{path.relative_to(folder).name.split(".out.")[0] for path in folder.rglob("*")} for folder in (one, other)]
    assert files[0] - {"config.yaml", "events"} - files[1] == set()
    assert json.loads((other / "run.json").read_text())["command"][1:] == sys.argv[1:]


def test_a_stopped_script_is_resumed_by_the_command_line(from_yaml: Path, sd3_folder: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text((from_yaml / "prompts.txt").read_text())
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, script.__file__, str(tmp_path), str(sd3_folder)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 128 + signal.SIGTERM, run.stderr
    assert "Traceback" not in run.stderr
    assert "stopped by SIGTERM at update" in run.stderr.splitlines()[-1]
    saved = newest(tmp_path / "script", "interrupted.ckpt")
    path = config(tmp_path, sd3_folder)
    assert guardlit("fit", "--config", path, "--ckpt_path", saved) == 0
    assert differing(newest(from_yaml / "runs"), newest(tmp_path / "runs")) == []


def test_last_is_the_newest_checkpoint_of_the_folder_as_on_the_command_line(
    from_yaml: Path, sd3_folder: Path, tmp_path
):
    (tmp_path / "prompts.txt").write_text((from_yaml / "prompts.txt").read_text())
    script.train(tmp_path, sd3_folder, max_epochs=1)
    trainer = script.train(tmp_path, sd3_folder, ckpt_path="last")
    assert Path(trainer.log_dir).name == "version_1"
    assert differing(newest(from_yaml / "runs"), newest(tmp_path / "script/version_1")) == []
    with pytest.raises(gl.GuardlitError, match="no checkpoint under"):
        script.train(tmp_path, sd3_folder, ckpt_path="last", default_root_dir=tmp_path / "nothing")


def test_one_trainer_fits_validates_and_samples_in_turn(from_yaml: Path, sd3_folder: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text((from_yaml / "prompts.txt").read_text())
    trainer, module, data = script.build(tmp_path, sd3_folder, max_epochs=1)
    trainer.fit(module, datamodule=data)
    (values,) = trainer.validate(module, datamodule=data)
    assert "val/reward" in values
    trainer.sample(module, data, prompts=["a cat"], n=2, out=str(tmp_path / "images"))
    assert len(list((tmp_path / "images").glob("*a-cat*.png"))) == 2


def test_what_only_samples_leaves_no_logs(from_yaml: Path, sd3_folder: Path, tmp_path: Path):
    trainer, module, data = script.build(from_yaml, sd3_folder, default_root_dir=tmp_path / "root")
    trainer.sample(module, data, prompts=["a cat"], n=1, out=str(tmp_path / "images"))
    assert not (tmp_path / "root").exists()


# arguments --------------------------------------------------------------------------------------------------------


def trainer(**arguments) -> gl.Trainer:
    return gl.Trainer(**{"accelerator": "cpu", **arguments})


def test_callbacks_stand_in_the_order_of_the_command_line():
    from guardlit_callbacks import TrainableEMA

    assert [type(c).__name__ for c in trainer(callbacks=TrainableEMA()).callbacks] == CALLBACKS


def test_the_defaults_are_those_that_the_command_line_shows(from_yaml: Path):
    import yaml

    saved = yaml.safe_load((from_yaml / "runs/version_0/config.yaml").read_text())["trainer"]
    made = trainer()
    assert made.gradient_clip_val == saved["gradient_clip_val"] == 1.0
    assert made.num_sanity_val_steps == saved["num_sanity_val_steps"] == 0
    assert made.check_val_every_n_epoch == saved["check_val_every_n_epoch"] == 10
    assert made.log_every_n_steps == saved["log_every_n_steps"] == 1
    assert saved["inference_mode"] is saved["use_distributed_sampler"] is saved["enable_model_summary"] is False
    assert saved["devices"] == made.num_devices == 1
    assert isinstance(made.strategy.checkpoint_io, SafeCheckpointIO)


def test_every_default_gives_way_to_an_argument(tmp_path: Path):
    progress, rounds, plugin = RichProgressBar(), RoundCheckpoint(save_top_k=-1), TorchCheckpointIO()
    logger = CSVLogger(tmp_path)
    made = trainer(
        callbacks=[progress, rounds, RunFolder()], plugins=plugin, logger=logger, gradient_clip_val=None,
        check_val_every_n_epoch=3, default_root_dir=tmp_path,
    )  # fmt: skip
    assert [c for c in made.callbacks if isinstance(c, RoundProgress | RichProgressBar)] == [progress]
    assert made.checkpoint_callbacks == [rounds]
    assert sum(isinstance(c, RunFolder) for c in made.callbacks) == 1
    assert made.strategy.checkpoint_io is plugin
    assert made.loggers == [logger]
    assert made.gradient_clip_val is None
    assert made.check_val_every_n_epoch == 3


def test_progress_and_checkpoints_can_be_turned_off():
    made = trainer(enable_progress_bar=False, enable_checkpointing=False)
    assert made.progress_bar_callback is None
    assert made.checkpoint_callbacks == []
    assert any(isinstance(c, SignalGuard) for c in made.callbacks)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"gradient_clip_val": -1}, "trainer.gradient_clip_val=-1 must be at least 0"),
        ({"precision": "64-mixed"}, "trainer: Precision '64-mixed' is invalid"),
        ({"devices": 0}, "trainer: .*devices"),
        ({"strategy": "nothing"}, "trainer.strategy=nothing is not supported"),
    ],
)
def test_a_mistaken_argument_is_one_line(arguments: dict[str, object], line: str):
    with pytest.raises(gl.GuardlitError, match=line) as error:
        trainer(**arguments)
    assert "\n" not in str(error.value)


def test_resources_are_released_at_a_bad_end(from_yaml: Path, sd3_folder: Path, tmp_path: Path):
    handlers = [signal.getsignal(number) for number in SignalGuard.SIGNALS]

    class Counting(gl.JPEGCompressibility):
        closed = 0

        def close(self):
            """Count."""
            Counting.closed += 1

    class Broken(pl.Callback):
        def on_train_batch_start(self, *_):
            """A bug."""
            raise ZeroDivisionError

    made, module, data = script.build(from_yaml, sd3_folder, Broken(), default_root_dir=tmp_path)
    module = gl.GRPOModule(policy=module.policy, reward=Counting(), rollout=module.rollout)
    with pytest.raises(ZeroDivisionError):
        made.fit(module, datamodule=data)
    assert Counting.closed >= 1
    assert [signal.getsignal(number) for number in SignalGuard.SIGNALS] == handlers
