"""SIGKILL at random moments: a run is killed and resumed repeatedly, and must end like the undisturbed run."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults.compare import differing, logged
from benchmarks.faults.lab import UPDATES, Lab, Setting, checkpoints, last_update
from benchmarks.faults.processes import Ended, Launch

LIMIT = 60.0
"""Seconds within which the remaining processes must exit by themselves."""
LOADING = 0.2
"""Fraction of the kills that come before the first round starts."""


@dataclass
class Kill:
    """One kill.

    Attributes:
        after: seconds after the process was started.
        loading: whether the first round had not begun.
        victim: `all`, or the rank that was killed.
        update: whose checkpoint was the last one then; 0 before the first.
        writing: whether a checkpoint was half written.
        gone: seconds until no process of the run was left.
        stuck: processes that had not ended within `LIMIT`.
    """

    after: float
    loading: bool
    victim: str
    update: int
    writing: bool
    gone: float
    stuck: list[str]


@dataclass
class History:
    """A run that was killed and resumed until it finished.

    Attributes:
        setting: its name.
        kills: in order.
        code: of the start that finished.
        differing: what differs from the undisturbed run in the state after the last update.
        unlogged: lines of the undisturbed run's log that no start of this one wrote.
        wrong: logged values that differ.
    """

    setting: str
    kills: list[Kill] = field(default_factory=list)
    code: int = -1
    differing: list[str] = field(default_factory=list)
    unlogged: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether it ended like the undisturbed run and left no process behind."""
        stuck = any(kill.stuck for kill in self.kills)
        return self.code == 0 and not self.differing and not self.wrong and not stuck


def campaign(lab: Lab, settings: list[Setting], kills: int, most: int, seed: int) -> Iterator[History]:
    """That many kills, at most `most` of one run, of the settings in turn; yields each finished run's history."""
    chance = random.Random(seed)
    for setting in settings if kills else ():
        lab.undisturbed(setting)
    done = dict.fromkeys(settings, 0)
    number = 0
    while sum(done.values()) < kills:
        setting = min(done, key=lambda s: done[s])
        number += 1
        wanted = min(most, kills - sum(done.values()))
        history = killed(lab, setting, f"killed-{number:02d}-{setting.name}", wanted, chance)
        done[setting] += len(history.kills)
        yield history


def killed(lab: Lab, setting: Setting, name: str, most: int, chance: random.Random) -> History:
    """Kill one run up to `most` times, resume it each time, and compare it with the undisturbed one."""
    folder, history = lab.write(setting, name), History(setting.name)
    while True:
        begun, launch = time.monotonic(), lab.start(setting, folder)
        victim = chance.choice(["all", *map(str, range(setting.processes))]) if setting.processes > 1 else "0"
        moment = _moment(chance, folder, lab.undisturbed(setting))
        if len(history.kills) == most or not _killed(launch, folder, victim, moment):
            break
        after = round(time.monotonic() - begun, 3)
        ended = launch.wait(LIMIT)
        if -signal.SIGKILL in ended.codes:  # else it finished at that moment
            history.kills.append(note(folder, after, moment.loading, victim, ended))
    return compared(lab, setting, folder, history, launch)


def note(folder: Path, after: float, loading: bool, victim: str, ended: Ended) -> Kill:
    """What a kill left behind."""
    halves = list((folder / "runs").glob("version_*/checkpoints/.*"))
    return Kill(after, loading, victim, last_update(folder), bool(halves), round(ended.seconds, 2), ended.stuck)


def compared(lab: Lab, setting: Setting, folder: Path, history: History, launch: Launch) -> History:
    """Wait for the start that is not killed, and compare its end with the undisturbed run's."""
    undisturbed = lab.undisturbed(setting)
    ended = launch.wait()
    history.code = max(ended.codes, key=abs)
    history.differing = differing(folder, undisturbed)
    history.unlogged, history.wrong = logged(folder, undisturbed)
    return history


@dataclass(frozen=True)
class _Moment:
    """When to kill: seconds after a process was started, or after an update's checkpoint was written.

    By progress and not by the clock: a machine may be twice as busy as when the undisturbed run was made.
    """

    loading: bool
    update: int
    seconds: float


def _moment(chance: random.Random, folder: Path, undisturbed: Path) -> _Moment:
    """Evenly over the time that the run loads, or over the remaining updates."""
    times = _times(undisturbed)
    if chance.random() < LOADING:
        return _Moment(True, 0, chance.uniform(0.0, times[0] - (undisturbed / "run.yaml").stat().st_mtime))
    progress = chance.uniform(last_update(folder), UPDATES)
    update = min(int(progress), UPDATES - 1)
    return _Moment(False, update, (progress - update) * (times[update + 1] - times[update]))


def _times(undisturbed: Path) -> list[float]:
    """When the first round began, and when the checkpoint of each update was written."""
    written = {p.stem: p.stat().st_mtime for p in checkpoints(undisturbed)}
    begun = (undisturbed / "runs/version_0/batches.txt").stat().st_mtime
    return [begun, *(written[f"update_{n}"] for n in range(1, UPDATES + 1))]


def _killed(launch: Launch, folder: Path, victim: str, moment: _Moment) -> bool:
    """Kill at a moment; False if the run finished before it."""
    rounds = _begun(folder)
    launch.pids()
    if not moment.loading:
        launch.until(lambda: _begun(folder) > rounds and last_update(folder) >= moment.update)
    due = time.monotonic() + moment.seconds
    launch.until(lambda: time.monotonic() >= due, every=0.001)
    if not launch.alive:
        return False
    launch.signal(signal.SIGKILL, None if victim == "all" else [int(victim)])
    return True


def _begun(folder: Path) -> int:
    """Number of a run's starts that reached a round."""
    return len(list((folder / "runs").glob("version_*/batches.txt")))
