"""Jobs on SLURM that are about to be stopped, and queue themselves again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

PREFIX = "hpc_ckpt_"
"""How Lightning names what a requeued job is to go on from, in the Trainer's `default_root_dir`."""


def requeue_signal(trainer: pl.Trainer) -> int | None:
    """The signal that asks for it; None outside of SLURM, or if it is turned off there."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def requeue(trainer: pl.Trainer, checkpoint: Path) -> None:
    """Have SLURM queue this job again, to go on from `checkpoint`; to be called by all processes.

    The checkpoint gets a second name, under which Lightning looks for it by itself where the command line has no
    `--ckpt_path`.
    """
    if not trainer.is_global_zero:
        return
    root = Path(trainer.default_root_dir)
    name = Path(trainer._checkpoint_connector.hpc_save_path(root))
    try:
        os.link(checkpoint, name)
        forget(trainer)
    except OSError as error:  # a file system without links
        rank_zero_warn(f"{name} could not be written ({error.strerror}): start the job with --ckpt_path last")
    command = ["scontrol", "requeue", _job()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        failure = done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure:
        rank_zero_warn(f"`{' '.join(command)}` failed ({failure}): start the job again yourself")
    else:
        rank_zero_info(f"job {command[-1]} is queued again, and goes on from {checkpoint}")


def forget(trainer: pl.Trainer) -> None:
    """Remove the second name of the checkpoint that this run went on from: the next job is to start another one."""
    path = Path(trainer.ckpt_path or "")
    if trainer.is_global_zero and path.name.startswith(PREFIX):
        path.unlink(missing_ok=True)


def _job() -> str:
    """Of a job array, the task's own: `ARRAY_TASK`."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
