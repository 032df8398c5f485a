"""Records every host-device synchronization, with the loop and the line that caused it."""

from __future__ import annotations

import json
import linecache
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

LOOPS = {
    ("torch/nn/modules/module.py", "_apply"): "moving a network",
    ("guardlit/policies/parts/prompted.py", "_run_encoders"): "encoding",
    ("guardlit/checkpoints/io.py", "save_checkpoint"): "checkpoint",
    ("connectors/checkpoint_connector.py", "dump_checkpoint"): "checkpoint",
    ("logger_connector/logger_connector.py", "log_metrics"): "logging",
    ("guardlit/rounds/rollout.py", "sample"): "denoising",
    ("guardlit/rounds/collector.py", "collect"): "round",
    ("loops/evaluation_loop.py", "run"): "validation",
    ("loops/optimization/closure.py", "closure"): "micro-batch",
    ("loops/optimization/automatic.py", "_optimizer_step"): "update",
    ("loops/training_epoch_loop.py", "advance"): "micro-batch",
}
"""The function on the stack that marks each loop; the innermost one counts."""
OURS = ("/guardlit/", "/guardlit_callbacks/", "/lightning/")


@dataclass(frozen=True)
class Place:
    """A line that synchronizes.

    Attributes:
        loop: of `LOOPS`, or `elsewhere`.
        kind: of synchronization.
        function: file and function, which are stable when lines move.
        line: number and text, for the reader.
    """

    loop: str
    kind: str
    function: str
    line: str


@dataclass
class Record:
    """The synchronizations of a process.

    Attributes:
        waits: number of synchronizations by line.
        calls: number of calls by loop, from `counting`.
    """

    waits: Counter[Place] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str) -> None:
        """Record one synchronization, caused by the caller."""
        frames = list(_frames(sys._getframe(1)))
        mine = next((f for f in frames if any(part in f.f_code.co_filename for part in OURS)), frames[-1])
        loop = next((LOOPS[key] for f in frames for key in LOOPS if _is(f, key)), "elsewhere")
        if threading.current_thread() is not threading.main_thread():
            loop = "thread"  # the main thread does not wait for it
        name = "/".join(Path(mine.f_code.co_filename).parts[-2:])
        text = linecache.getline(mine.f_code.co_filename, mine.f_lineno).strip()
        self.waits[Place(loop, kind, f"{name} {mine.f_code.co_name}", f"{mine.f_lineno}: {text}")] += 1

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        rows = [{**vars(place), "count": count} for place, count in self.waits.items()]
        path.write_text(json.dumps({"waits": rows, "calls": self.calls}))

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a file of `write`."""
        saved = json.loads(path.read_text())
        record = cls(calls=Counter(saved["calls"]))
        for row in saved["waits"]:
            count = row.pop("count")
            record.waits[Place(**row)] += count
        return record

    def of(self, loop: str) -> Counter[str]:
        """Number of synchronizations in a loop, by function."""
        counts: Counter[str] = Counter()
        for place, count in self.waits.items():
            if place.loop == loop:
                counts[place.function] += count
        return counts

    def table(self, loop: str) -> str:
        """The lines of a loop that synchronize, most frequent first, for a message."""
        rows = [(count, place) for place, count in self.waits.items() if place.loop == loop]
        rows.sort(key=lambda row: -row[0])
        return "\n".join(f"{count:6d}  {place.kind:28s} {place.function}:{place.line}" for count, place in rows)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """The stack, innermost frame first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is(frame: FrameType, key: tuple[str, str]) -> bool:
    return frame.f_code.co_name == key[1] and frame.f_code.co_filename.endswith(key[0])


RECORD = Record()
"""The record of this process."""
