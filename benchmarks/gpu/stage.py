"""A stage, its inputs and its rows."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class NotMeasuredError(Exception):
    """Why a row, or a stage, has no number; not an error of the program."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        stage: that wrote it.
        name: of what was measured.
        value: None where it was not measured.
        unit: of the value.
        note: how it was measured, or why it was not.
        device: that it was measured on.
        torch: version.
    """

    stage: str
    name: str
    value: float | None
    unit: str
    note: str
    device: str
    torch: str


@dataclass
class Bench:
    """The inputs of a stage, which runs in a separate process.

    Attributes:
        stage: its name.
        kind: `cuda` or `cpu`.
        device: its name; torch would initialize CUDA to find it, after which no process could fork.
        rehearse: tiny sizes; the numbers mean nothing.
        folder: private to the stage, for its files.
        rows: the file that rows are appended to, one JSON object a line.
        ends: `time.monotonic()` at which it will be killed.
        known: values of stages before it, by name of the row.
    """

    stage: str
    kind: str
    device: str
    rehearse: bool
    folder: Path
    rows: Path
    ends: float
    known: dict[str, float] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds until it is killed."""
        return self.ends - time.monotonic()

    def size(self, real: T, tiny: T) -> T:
        """The first, or in a rehearsal the second."""
        return tiny if self.rehearse else real

    def row(self, name: str, value: float, unit: str = "", note: str = "") -> None:
        """Write a number to disk at once, so that a later failure cannot lose it."""
        value = float(value)
        if not math.isfinite(value):
            self.missing(name, f"the result was {value}; {note}")
            return
        self._write(name, value, unit, note)

    def missing(self, name: str, why: str) -> None:
        """Write the reason why there is no number."""
        self._write(name, None, "", f"not measured: {why}")

    def trying(self, name: str, measure: Callable[[], None]) -> None:
        """Measure one of several things; a failure becomes a row, and the stage continues."""
        try:
            measure()
        except Exception as error:
            self.missing(name, reason(error))

    def _write(self, name: str, value: float | None, unit: str, note: str) -> None:
        import torch

        with self.rows.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps(asdict(Row(self.stage, name, value, unit, note, self.device, torch.__version__))) + "\n"
            )
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Stage:
    """A part of the benchmark.

    Attributes:
        name: for the command line.
        about: one line.
        run: called in a separate process.
        budget: seconds after which that process is killed.
        rows: names of its expected rows; missing ones are reported as not measured.
        alone: whether no other stage may run at the same time, because it takes timings.
    """

    name: str
    about: str
    run: Callable[[Bench], None]
    budget: float
    rows: tuple[str, ...] = ()
    alone: bool = True


def reason(error: BaseException) -> str:
    """An error in one line."""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return first if isinstance(error, NotMeasuredError) else f"{type(error).__name__}: {first}"
