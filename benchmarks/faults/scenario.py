"""One fault, from the first start to the resumed run, and what is expected at each step."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.faults.compare import differing, distance, logged
from benchmarks.faults.inject import DIE, SAVE, after
from benchmarks.faults.lab import ONE, Lab, Setting, checkpoints, last_update
from benchmarks.faults.processes import Ended, Launch, Prepare

ROUNDING = 1e-6
"""Largest difference of weights, relative to the largest one, that counts as rounding in float32."""
HALF_SAVES = 8
"""Checkpoints after which the run dies that faults of files begin with: of updates 1 to 4, of round 0, of 5 to 7."""

Like = Literal["bits", "rounding", "own"]
Surroundings = Callable[[Path], AbstractContextManager[Mapping[str, object]]]


@dataclass(frozen=True)
class Fault:
    """A fault, and what guardlit promises for it.

    It strikes in the first start of a run (`prepare`, `during`, `surroundings`), or strikes the files of a run that was
    killed in its second round (`corrupt`), or both. Then the run is resumed: first with the fault still there with
    `refused` for its message, at last with everything fixed.

    Attributes:
        name: for the table.
        setting: of the run.
        changes: of its configuration, in the undisturbed run too.
        prepare: in every process of the first start.
        during: from outside, during the first start.
        surroundings: of all starts: gives further changes of the configuration that only this run gets.
        agent: whether torchrun launches several processes.
        codes: exit codes of the first start; of several processes, of those that are not killed. It is done after a 0.
        says: words in the last line of the first start, on every rank with output.
        corrupt: called with the folder, before the resume.
        with_options: command line options of the refused resume.
        refused: words in the last line of a resume that ends with 2.
        fix: called with the folder, after `refused`.
        warns: words anywhere in the output of the run that is resumed at last.
        like: whether the final state is the undisturbed one's bit by bit, within rounding, or is not compared.
        limit: seconds within which the first start must have exited.
    """

    name: str
    setting: Setting = ONE
    changes: Mapping[str, object] = field(default_factory=dict)
    prepare: Prepare | None = None
    during: Callable[[Launch, Path], None] | None = None
    surroundings: Surroundings | None = None
    agent: bool = True
    codes: tuple[int, ...] = (2,)
    says: tuple[str, ...] = ()
    corrupt: Callable[[Path], object] | None = None
    with_options: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    fix: Callable[[Path], object] | None = None
    warns: tuple[str, ...] = ()
    like: Like = "bits"
    limit: float = 120.0


@dataclass
class Outcome:
    """What happened.

    Attributes:
        fault: its name.
        exit: exit codes of the start that it struck.
        said: that start's last line.
        kept: the update of the last checkpoint, and how many there were.
        resumed: exit code and what was resumed from.
        equal: `bit for bit`, the relative difference of the weights, or what differs.
        seconds: until nothing of the start was left.
        broken: expectations that were not met.
    """

    fault: str
    exit: str = ""
    said: str = ""
    kept: str = ""
    resumed: str = ""
    equal: str = ""
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether all was as promised."""
        return not self.broken


def play(lab: Lab, fault: Fault) -> Outcome:
    """Run a fault, resume, and compare."""
    undisturbed = lab.undisturbed(fault.setting, **fault.changes)
    outcome = Outcome(fault.name)
    name = "".join(c if c.isalnum() else "-" for c in fault.name)
    with _surrounded(fault, lab.folder / "runs" / name) as own:
        folder = lab.write(fault.setting, name, **fault.changes, **own)
        done = _strike(lab, fault, folder, outcome)
        outcome.kept = f"update {last_update(folder)}, {len(checkpoints(folder))} files"
        if fault.corrupt is not None:
            fault.corrupt(folder)
        if fault.refused:
            _refuse(fault, lab.start(fault.setting, folder, *fault.with_options).wait(), outcome)
        if fault.fix is not None:
            fault.fix(folder)
        if not done:
            _resume(lab, fault, folder, outcome)
        _compare(fault, folder, undisturbed, outcome)
    return outcome


@contextmanager
def _surrounded(fault: Fault, folder: Path) -> Iterator[Mapping[str, object]]:
    with fault.surroundings(folder) if fault.surroundings is not None else nullcontext({}) as own:
        yield own


def _strike(lab: Lab, fault: Fault, folder: Path, outcome: Outcome) -> bool:
    """The first start; whether the run is done after it."""
    if fault.prepare is None and fault.during is None and fault.surroundings is None and not fault.says:
        shutil.copytree(_half(lab, fault.setting) / "runs", folder / "runs")
        outcome.exit, outcome.said = "-9", "(killed in its second round, then:)"
        return False
    launch = lab.start(fault.setting, folder, prepare=fault.prepare, agent=fault.agent)
    if fault.during is not None:
        fault.during(launch, folder)
    ended = launch.wait(fault.limit)
    outcome.exit, outcome.seconds = " ".join(map(str, ended.codes)), round(ended.seconds, 1)
    spoken = [line for code, line in zip(ended.codes, ended.last, strict=True) if code not in _KILLED]
    outcome.said = (spoken or ended.last)[-1]
    if ended.stuck:
        outcome.broken.append(f"still there after {fault.limit:g} s: {', '.join(ended.stuck)}")
    found = {code for code in ended.codes if code not in _KILLED or code in fault.codes}
    _expect(outcome, set(fault.codes), found, fault.says, spoken)
    return 0 in fault.codes


_KILLED = (-signal.SIGKILL, -signal.SIGTERM)


def _refuse(fault: Fault, ended: Ended, outcome: Outcome) -> None:
    outcome.exit += f", then {' '.join(map(str, ended.codes))}"
    outcome.said = ended.last[0]
    _expect(outcome, {2}, set(ended.codes), fault.refused, ended.last)


def _resume(lab: Lab, fault: Fault, folder: Path, outcome: Outcome) -> None:
    launch = lab.start(fault.setting, folder)
    ended = launch.wait()
    begun = "the beginning"
    for facts in sorted((folder / "runs").glob("version_*/run.json"), key=lambda p: p.stat().st_mtime_ns)[-1:]:
        source = json.loads(facts.read_text())["resumed_from"]
        begun = Path(source).name if source else begun
    outcome.resumed = f"{max(ended.codes, key=abs)}, from {begun}"
    _expect(outcome, {0}, set(ended.codes), fault.warns, [launch.said()])
    if fault.warns:
        lines = (line.rpartition("Warning: ")[2] for line in launch.said().splitlines() if fault.warns[0] in line)
        outcome.said = next(lines, outcome.said)
    if any(ended.codes):
        outcome.broken.append(f"resumed, it said: {ended.last[0]}")


def _expect(outcome: Outcome, codes: set[int], found: set[int], words: tuple[str, ...], lines: list[str]) -> None:
    if found != codes:
        outcome.broken.append(f"exit code {sorted(found)}, expected {sorted(codes)}")
    for line in lines:
        outcome.broken += [f"'{word}' is not in '{line[-200:]}'" for word in words if word not in line]


def _compare(fault: Fault, folder: Path, undisturbed: Path, outcome: Outcome) -> None:
    if fault.like == "own":
        outcome.equal = "another run"
        return
    names = differing(folder, undisturbed)
    _, wrong = logged(folder, undisturbed)
    if not names and not wrong:
        outcome.equal = "bit for bit"
    elif not names:
        outcome.equal = f"bit for bit, but {len(wrong)} logged lines differ"
        outcome.broken.append(wrong[0])
    elif "/global_step" in names:
        outcome.equal = "no: the last update was not reached"
        outcome.broken.append(outcome.equal)
    else:
        far = distance(folder, undisturbed)
        outcome.equal = f"weights within {far:.1e}"
        if fault.like == "bits" or far > ROUNDING:
            outcome.broken.append(f"{len(names)} entries differ, such as {names[0]}; {outcome.equal}")


def _half(lab: Lab, setting: Setting) -> Path:
    """The folder of a run that was killed in its second round; made once a setting."""
    folder = lab.folder / "runs" / f"half-{setting.name}"
    if not folder.exists():
        lab.write(setting, folder.name)
        lab.start(setting, folder, prepare=after(SAVE, HALF_SAVES, DIE)).wait()
    return folder
