"""However a run of one rank ends, it releases its resources; a signal takes effect wherever it comes."""

from __future__ import annotations

import csv
import os
import signal
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from brightness import Brightness
from runs import config, differing, guardlit, newest

from guardlit.training.recovery.signals import SignalGuard

EMA = {"class_path": "guardlit_callbacks.TrainableEMA"}


class Open(Brightness):
    """Counts how often it is opened and closed.

    Args:
        name: under which `Open.events` has it.
    """

    events: ClassVar[list[str]] = []

    def __init__(self, name: str) -> None:
        super().__init__()
        self.called = name

    def setup(self, device: torch.device) -> None:
        Open.events.append(f"open {self.called}")

    def close(self) -> None:
        Open.events.append(f"close {self.called}")


def run(folder: Path, model: Path, what: str | None, place: str = "batch", at: int = 0, **more) -> Path:
    """The YAML of two rounds in one process, with a validation after each and something that happens."""
    init = {"what": what, "place": place, "at": at, "rank": 0}
    callbacks = [EMA] + ([{"class_path": "troubles.Trouble", "init_args": init}] if what else [])
    settings = {"trainer__max_epochs": 2, "trainer__check_val_every_n_epoch": 1, "data__rollout_batch": 1}
    return config(folder, model, **(settings | {"trainer__callbacks": callbacks} | more))


@pytest.fixture(autouse=True)
def handlers():
    """The signals' handlers after a test are those before it."""
    before = [signal.getsignal(number) for number in SignalGuard.SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SignalGuard.SIGNALS] == before


@pytest.mark.parametrize(
    ("what", "code"),
    [(None, 0), ("SIGTERM", 143), ("user error", 2), ("SIGINT twice", 130), ("raise", RuntimeError), ("memory", None)],
)
def test_scorers_are_closed_once_however_a_run_ends(sd3_folder: Path, tmp_path: Path, what: str | None, code):
    Open.events.clear()
    gold = {"class_path": "guardlit_callbacks.GoldScore"}
    gold["init_args"] = {"scorers": {"g": {"class_path": f"{__name__}.Open", "init_args": {"name": "gold"}}}}
    reward = {"class_path": f"{__name__}.Open", "init_args": {"name": "reward"}}
    trouble = {"class_path": "troubles.Trouble", "init_args": {"what": what, "place": "batch", "at": 1, "rank": 0}}
    callbacks = [gold] + ([trouble] if what else [])
    path = run(tmp_path, sd3_folder, what, model__reward=reward, trainer__callbacks=callbacks, trainer__max_epochs=1)
    if isinstance(code, int):
        assert guardlit("fit", "--config", path) == code
    else:
        with pytest.raises(code or torch.OutOfMemoryError):
            guardlit("fit", "--config", path)
    assert sorted(Open.events) == ["close gold", "close reward", "open gold", "open reward"]


@pytest.fixture(scope="module")
def undisturbed(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert guardlit("fit", "--config", run(folder, sd3_folder, None)) == 0
    return folder


def rows(folder: Path, column: str) -> dict[str, float]:
    """What the run's parts have logged of a column, by step."""
    found = {}
    for file in sorted(folder.rglob("metrics.csv")):
        with file.open() as lines:
            found |= {row["step"]: float(row[column]) for row in csv.DictReader(lines) if row.get(column)}
    return found


@pytest.mark.parametrize("at", [0, 1])
def test_a_validation_that_a_signal_cuts_short_comes_again(
    undisturbed: Path, sd3_folder: Path, tmp_path: Path, at: int
):
    """Two images, one a batch. The rounds before and after are logged once, as in the undisturbed run."""
    path = run(tmp_path, sd3_folder, "SIGTERM", "validation", at)
    assert guardlit("fit", "--config", path) == 143
    saved = newest(tmp_path, "interrupted.ckpt")
    assert torch.load(saved, weights_only=True)["callbacks"]["SignalGuard"] == {"validation_due": True}
    run(tmp_path, sd3_folder, None)
    assert guardlit("fit", "--config", path, "--ckpt_path", saved) == 0
    whole, resumed = newest(undisturbed), newest(tmp_path / "runs/version_1")
    assert differing(whole, resumed) == []
    for column in ("val/reward", "average_reward/jpeg_compressibility", "train/loss"):
        assert rows(tmp_path, column) == pytest.approx(rows(undisturbed, column), rel=1e-6), column  # float32
        assert rows(undisturbed, column)
    loops = [torch.load(p, weights_only=True)["loops"]["fit_loop"]["epoch_progress"] for p in (whole, resumed)]
    assert loops[0]["current"] == loops[1]["current"]


def test_a_signal_in_the_first_validation_is_answered_at_once(undisturbed: Path, sd3_folder: Path, tmp_path: Path):
    path = run(tmp_path, sd3_folder, "SIGTERM", "first validation", 0)
    assert guardlit("fit", "--config", path) == 143
    saved = newest(tmp_path, "interrupted.ckpt")
    run(tmp_path, sd3_folder, None)
    assert guardlit("fit", "--config", path, "--ckpt_path", saved) == 0
    assert differing(newest(undisturbed), newest(tmp_path / "runs/version_1")) == []
    assert rows(tmp_path, "val/reward") == rows(undisturbed, "val/reward")


def test_schedulers_may_repeat_a_signal(sd3_folder: Path, tmp_path: Path):
    """SLURM signals all processes of a job, and torchrun passes on what it gets: that makes two."""
    assert guardlit("fit", "--config", run(tmp_path, sd3_folder, "SIGTERM twice")) == 143
    assert newest(tmp_path, "interrupted.ckpt")


# SLURM ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job of one process, and the file to which a stand-in for `scontrol` writes its arguments."""
    arguments = tmp_path / "scontrol.txt"
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!{sys.executable}\nimport sys\nopen({str(arguments)!r}, "a").write(" ".join(sys.argv[1:]))\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    job = {"NTASKS": "1", "JOB_ID": "4711", "JOB_NAME": "guard", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return arguments


def test_the_requeue_signal_queues_the_job_again_which_then_goes_on(
    slurm: Path, undisturbed: Path, sd3_folder: Path, tmp_path: Path
):
    path = run(tmp_path, sd3_folder, "SIGUSR1", "batch", 2)
    assert guardlit("fit", "--config", path) == 138
    assert slurm.read_text() == "requeue 4711"
    run(tmp_path, sd3_folder, None)
    assert [p.name for p in (tmp_path / "runs").glob("*.ckpt")] == ["hpc_ckpt_1.ckpt"]
    assert guardlit("fit", "--config", path) == 0  # the same command line, without --ckpt_path
    assert differing(newest(undisturbed), newest(tmp_path / "runs/version_1")) == []
    assert list((tmp_path / "runs").glob("*.ckpt")) == []  # the next run in this folder is another one


def test_a_job_that_is_cancelled_is_not_queued_again(slurm: Path, sd3_folder: Path, tmp_path: Path):
    assert guardlit("fit", "--config", run(tmp_path, sd3_folder, "SIGTERM")) == 143
    assert not slurm.exists()
    assert newest(tmp_path, "interrupted.ckpt")


def test_a_job_array_and_a_signal_of_its_own(slurm: Path, sd3_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    environment = {"class_path": "lightning.pytorch.plugins.environments.SLURMEnvironment"}
    environment["init_args"] = {"requeue_signal": "SIGHUP"}
    path = run(tmp_path, sd3_folder, "SIGHUP", trainer__plugins=[environment])
    assert guardlit("fit", "--config", path) == 128 + signal.SIGHUP
    assert slurm.read_text() == "requeue 12_3"


def test_a_requeue_that_fails_is_said(slurm: Path, sd3_folder: Path, tmp_path: Path, recwarn):
    program = tmp_path / "bin" / "scontrol"
    program.write_text("#!/bin/sh\necho no such job >&2\nexit 1\n")
    assert guardlit("fit", "--config", run(tmp_path, sd3_folder, "SIGUSR1")) == 138
    said = [str(w.message) for w in recwarn]
    assert "`scontrol requeue 4711` failed (no such job): start the job again yourself" in said
