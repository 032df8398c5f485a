"""Requeues SLURM jobs that are about to be stopped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
from lightning.fabric.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from guardlit.processes.lightning_internals import cluster_environment, next_hpc_checkpoint

PREFIX = "hpc_ckpt_"
"""Start of the names under which Lightning looks for a requeued job's checkpoint, in `default_root_dir`."""


def requeue_signal(trainer: pl.Trainer) -> int | None:
    """The signal that asks for a requeue; None outside of SLURM, or where `auto_requeue` is off."""
    environment = cluster_environment(trainer)
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal
    return None


def requeue(trainer: pl.Trainer, checkpoint: Path) -> None:
    """Requeue this SLURM job, to resume from `checkpoint`; every rank may call it, rank 0 acts.

    The checkpoint gets a second name, under which Lightning finds it where the command line has no `--ckpt_path`.
    """
    if not trainer.is_global_zero:
        return
    name = next_hpc_checkpoint(trainer)
    try:
        os.link(checkpoint, name)
        remove_requeue_checkpoint(trainer)
    except OSError as error:  # a file system without links
        rank_zero_warn(f"{name} could not be written ({error.strerror}): start the job with --ckpt_path last")
    command = ["scontrol", "requeue", job_id(os.environ)]
    if failure := _failure(command):
        rank_zero_warn(f"`{' '.join(command)}` failed ({failure}): start the job again yourself")
    else:
        rank_zero_info(f"job {command[-1]} is requeued, and resumes from {checkpoint}")


def _failure(command: list[str]) -> str:
    """Run a command; what it says of its failure, empty on success."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""


def remove_requeue_checkpoint(trainer: pl.Trainer) -> None:
    """Remove the second name of the checkpoint this run resumed from: the next job is another run."""
    path = Path(trainer.ckpt_path or "")
    if trainer.is_global_zero and path.name.startswith(PREFIX):
        path.unlink(missing_ok=True)


def job_id(environment: Mapping[str, str]) -> str:
    """The job's id; of a job array, the task's: `ARRAY_TASK`."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]
