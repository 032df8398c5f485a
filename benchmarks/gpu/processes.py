"""Separate processes for stages, forked from one that has imported everything and never initialized CUDA."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

KILLED = 137


def preload() -> None:
    """Import once what every stage needs.

    With NVML's device count, the check for CUDA does not initialize it. After an initialization no fork could use it.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import diffusers
    import peft
    import torch
    import transformers

    import guardlit.commands.lightning_cli
    import guardlit.planning.estimate
    import guardlit.rewards.jpeg  # noqa: F401

    torch.set_num_threads(1)  # an OpenMP team that has run deadlocks in forked processes
    _ = diffusers.SD3Transformer2DModel, diffusers.FluxTransformer2DModel, diffusers.AutoencoderKL
    _ = diffusers.StableDiffusion3Pipeline, diffusers.FlowMatchEulerDiscreteScheduler
    _ = peft.LoraConfig, transformers.T5EncoderModel, transformers.CLIPModel, transformers.CLIPTextModelWithProjection


def cuda_is_spoiled() -> bool:
    """Whether this process initialized CUDA, so that no process forked from it can use it."""
    import torch

    return torch.cuda.is_initialized() or bool(torch.cuda._is_in_bad_fork())


@dataclass
class Child:
    """A forked process.

    Attributes:
        pid: the leader of its process group.
        log: its output.
        began: by `time.monotonic()`.
        code: its exit code; None while it runs.
    """

    pid: int
    log: Path
    began: float
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, minus the signal's number if one killed it; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def kill(self) -> None:
        """Kill it and all processes that it started."""
        for target in (lambda: os.killpg(self.pid, signal.SIGKILL), lambda: os.kill(self.pid, signal.SIGKILL)):
            try:
                target()
            except ProcessLookupError:
                continue
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None if it had to be killed after so many seconds."""
        until = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > until:
                self.kill()
                return None
            time.sleep(0.02)
        return self.code


def fork(work: Callable[[], object], log: Path) -> Child:
    """Run `work` in a forked process; its exit code is 0, the integer that `work` returned, or 1 on an error."""
    sys.stdout.flush()
    sys.stderr.flush()
    log.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return Child(pid, log, time.monotonic())
    code = 1
    try:
        _begin(log, parent)
        result = work()
        code = result if isinstance(result, int) else 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _begin(log: Path, parent: int) -> None:
    os.setpgid(0, 0)
    _die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, so that a killed stage leaves no run behind."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(KILLED)


def last_line(log: Path) -> str:
    """The last line of a process's output that is not blank or indented."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    said = [line.strip() for line in lines if line.strip() and not line.startswith(" ")]
    return said[-1][:300] if said else "it said nothing"
