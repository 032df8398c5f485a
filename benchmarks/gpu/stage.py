"""What a stage is, what it is given, and the rows that it leaves."""

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
    """Why a row, or a whole stage, has no number here: not an error of the program."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        stage: that wrote it.
        name: of what was measured.
        value: None where it was not measured.
        unit: of the value.
        note: how it was measured, or why it was not.
        device: that it is of.
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
    """What a stage works with, in a process of its own.

    Attributes:
        stage: its name.
        kind: `cuda` or `cpu`.
        device: its name; asking torch for it would initialize CUDA, after which nothing could be forked.
        rehearse: tiny sizes: the numbers say nothing.
        folder: for whatever it writes; its own.
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
        """Keep a number at once: whatever happens next, it is there."""
        value = float(value)
        if not math.isfinite(value):
            self.missing(name, f"the result was {value}; {note}")
            return
        self._write(name, value, unit, note)

    def missing(self, name: str, why: str) -> None:
        """Keep a reason why there is no number."""
        self._write(name, None, "", f"not measured: {why}")

    def trying(self, name: str, measure: Callable[[], None]) -> None:
        """Measure one of several things; that it cannot be had is a row, and the stage goes on."""
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
        run: called in a process of its own.
        budget: seconds after which that is killed.
        rows: names that it should leave; what is missing of them is reported as not measured.
        alone: whether nothing else may run beside it, because it takes times.
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
