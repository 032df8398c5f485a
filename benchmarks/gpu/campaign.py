"""Runs the stages within a time limit: one after another, or at once where they take no timings."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu import ceilings, exact, memory, pair, parts, report, rounding, rounds, survival, usual
from benchmarks.gpu.processes import Child, cuda_is_spoiled, fork, last_line
from benchmarks.gpu.stage import Bench, NotMeasuredError, Stage, reason

_ALL = {
    stage.name: stage
    for part in (ceilings, exact, rounding, survival, pair, rounds, usual, memory, parts)
    for stage in part.STAGES
} | {"flux": rounding.FLUX}
RIGHT = ("ceilings", "scale", "exact", "floor", "resume", "export", "pair", "digits")
COST = ("round", "options", "usual", "memory", "profile", "flux")
ORDER = (*RIGHT, *COST, "suite", "sweep", "parts")
"""By importance: the last stages are not measured when time runs out."""
STAGES = tuple(_ALL[name] for name in ORDER)
LEAST = 8.0
"""Seconds that a stage must have before it begins."""
POLL = 0.05
SLOW = 5
"""Factor on a stage's budget in a rehearsal."""


def chosen(only: Sequence[str] | None, skip: Sequence[str]) -> list[Stage]:
    """The requested stages, in their order; raises `ValueError` for an unknown name."""
    for name in (*(only or ()), *skip):
        if name not in _ALL:
            raise ValueError(f"there is no stage {name}; there are {', '.join(ORDER)}")
    return [s for s in STAGES if (only is None or s.name in only) and s.name not in skip]


@dataclass
class _Running:
    stage: Stage
    child: Child
    rows: Path
    budget: float


class Campaign:
    """The stages, their processes and their results.

    Args:
        stages: in order.
        out: for the results.
        seconds: for everything.
        rehearse: tiny sizes on the CPU.
        jobs: stages at once, of those that may run in parallel.

    Raises:
        ValueError: there is no GPU, and this is not a rehearsal.
    """

    def __init__(self, stages: Sequence[Stage], out: Path, seconds: float, rehearse: bool, jobs: int) -> None:
        self.stages, self.out, self.rehearse, self.jobs = list(stages), out, rehearse, jobs
        self.began = time.monotonic()
        self.ends = self.began + seconds
        self.folder = Path(tempfile.mkdtemp(prefix="guardlit_gpu_"))
        self.kind = "cpu" if rehearse else "cuda"
        self.device = "CPU" if rehearse else self._device()
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.ended: dict[str, str] = {}
        self._running: list[_Running] = []

    def _device(self) -> str:
        """The GPU's name, from a separate process."""
        import torch

        if cuda_is_spoiled():
            raise ValueError("something initialized CUDA before the stages could be forked")
        found = self.folder / "device"
        child = fork(lambda: found.write_text(torch.cuda.get_device_name()) and None, self.folder / "device.log")
        if child.wait(60) != 0:
            raise ValueError(f"no GPU answers here, and --rehearse is not set: {last_line(self.folder / 'device.log')}")
        return found.read_text()

    def run(self) -> int:
        """Run all stages; 0 if each completed."""
        waiting = list(self.stages)
        while waiting or self._running:
            while waiting and self._room(waiting[0]):
                self._start(waiting.pop(0))
            for running in list(self._running):
                self._poll(running)
            time.sleep(POLL)
        return int(any(how != "done" for how in self.ended.values()))

    def _room(self, stage: Stage) -> bool:
        if not self._running:
            return True
        return not stage.alone and not any(r.stage.alone for r in self._running) and len(self._running) < self.jobs

    def _start(self, stage: Stage) -> None:
        left = self.ends - time.monotonic()
        if left < LEAST:
            self._finish(stage, Path(), "the time was up before it began")
            return
        folder = self.folder / stage.name
        folder.mkdir()
        # a rehearsal shares its cores with the rest of a test suite
        budget, rows = min(stage.budget * (SLOW if self.rehearse else 1), left), folder / "rows.jsonl"
        known = {r["name"]: r["value"] for found in self.rows.values() for r in found if r["value"] is not None}
        ends = time.monotonic() + budget
        bench = Bench(stage.name, self.kind, self.device, self.rehearse, folder, rows, ends, known)
        child = fork(lambda: _played(stage, bench), folder / "stage.log")
        self._running.append(_Running(stage, child, rows, budget))
        print(f"{time.monotonic() - self.began:6.1f} s  {stage.name} begins, at most {budget:.0f} s", flush=True)

    def _poll(self, running: _Running) -> None:
        child, stage = running.child, running.stage
        code = child.poll()
        took = time.monotonic() - child.began
        if code is None and took < running.budget:
            return
        self._running.remove(running)
        if code is None:
            child.kill()
            how = f"killed at its budget of {running.budget:.0f} s"
        elif code:
            how = f"ended with {code}: {last_line(child.log)}"
        else:
            how = "done"
        self._finish(stage, running.rows, how)
        print(f"{time.monotonic() - self.began:6.1f} s  {stage.name}: {how} after {took:.1f} s", flush=True)

    def _finish(self, stage: Stage, rows: Path, how: str) -> None:
        self.ended[stage.name] = how
        self.rows[stage.name] = report.read(rows) if rows.name else []
        self.write()

    def write(self) -> None:
        """Write the results so far, in the stages' order."""
        import torch

        rows = []
        for stage in self.stages:
            how = self.ended.get(stage.name, "not begun, or cut off by the end of the program")
            why = "the rehearsal leaves it out, or the stage ended without it" if how == "done" else how
            rows += report.filled(stage, self.rows.get(stage.name, []), why, self.device, torch.__version__)
        seconds = time.monotonic() - self.began
        machine = f"{self.device}, {os.cpu_count()} CPU cores, Python {platform.python_version()}"
        head = {"rehearsal": self.rehearse, "machine": machine, "date": str(date.today()), "seconds": seconds}
        report.write(self.out, rows, {**head, "command": sys.argv, "stages": self.ended, "versions": _versions()})

    def close(self) -> None:
        """Kill running stages, write the results, keep the logs of failed stages."""
        for running in self._running:
            running.child.kill()
            self.ended[running.stage.name] = "cut off by the end of the program"
            self.rows[running.stage.name] = report.read(running.rows)
        self._running = []
        self.write()
        with (self.out / "log.txt").open("w", encoding="utf-8") as file:
            for log in sorted(self.folder.rglob("*.log")):
                lines = log.read_text(errors="replace").splitlines()[-40:]
                file.write("\n".join([f"==== {log.relative_to(self.folder)}", *lines, ""]))
        shutil.rmtree(self.folder, ignore_errors=True)


def _played(stage: Stage, bench: Bench) -> int:
    """Runs in the stage's process."""
    try:
        stage.run(bench)
    except NotMeasuredError as error:
        for name in stage.rows:
            bench.missing(name, str(error))
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(reason(error), flush=True)
        return 1
    return 0


def _versions() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for name in ("torch", "lightning", "diffusers", "transformers", "peft", "jsonargparse", "guardlit"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed: from the tree"
    return found
