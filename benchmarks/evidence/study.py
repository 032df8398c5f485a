"""The stages of a world, one after the other; each needs what the one before has found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.evidence.ranges import ClipRanges
from benchmarks.evidence.trials import Planner, Trial
from benchmarks.evidence.worlds import METHODS, OBJECTIVES, PAIR, Setting, World
from guardlit.ablation.pool import Pool

Train = Callable[[Sequence[Trial]], dict[str, str]]
"""Trains what is not finished; returns why runs failed, by their folder."""
FAILED = "failed.json"
"""In a world's folder: the runs that failed, which the next stages do without."""


class Incomplete(Exception):  # noqa: N818 - not an error
    """A stage has runs that are neither finished nor failed."""


class Study:
    """The trials of a world as far as they are known, stage by stage.

    Args:
        world: the world.
        folder: of its runs.
        train: None to train nothing and read what is finished.
    """

    def __init__(self, world: World, folder: Path, train: Train | None) -> None:
        self.world, self.folder, self._train = world, folder, train
        self.planner = Planner(world, folder)
        self.trials: list[Trial] = []
        """Of all stages so far."""
        self.complete = False
        """Whether every stage is finished."""
        path = folder / FAILED
        self.failed: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def of(self, stage: str) -> list[Trial]:
        """The finished trials of a stage."""
        return [trial for trial in self.trials if trial.stage == stage and trial.run.finished()]

    def at(self, setting: Setting) -> dict[str, list[Trial]]:
        """The finished full-length trials at a setting, by method in the order of `METHODS`."""
        found: dict[str, list[Trial]] = {name: [] for name in METHODS}
        for trial in self.of("settings"):
            if trial.setting == setting:
                found[trial.method].append(trial)
        return {name: own for name, own in found.items() if own}

    def stage(self, trials: list[Trial]) -> list[Trial]:
        """Train a stage; returns what is finished, raises `Incomplete` where that is not all but the failed."""
        self.trials.extend(trials)
        places = {str(trial.run.folder.relative_to(self.folder)) for trial in trials}
        if self._train is not None and trials:
            new = {str(Path(folder).relative_to(self.folder)): why for folder, why in self._train(trials).items()}
            self.failed = {place: why for place, why in self.failed.items() if place not in places} | new
            (self.folder / FAILED).write_text(json.dumps(self.failed, indent=1) + "\n", encoding="utf-8")
        finished = [trial for trial in trials if trial.run.finished()]
        if len(finished) + len(places & self.failed.keys()) < len(trials):
            raise Incomplete(f"{len(finished)} of {len(trials)} runs of {trials[0].stage} are finished")
        return finished


def complete(world: World, folder: Path, train: Train | None) -> Study:
    """All stages of a world, as far as they are finished where nothing is trained."""
    study = Study(world, folder, train)
    try:
        _stages(study)
        study.complete = True
    except Incomplete as incomplete:
        print(f"{world.name}: {incomplete}")
    return study


def _stages(study: Study) -> None:
    world, plan = study.world, study.planner
    calibrated = study.stage(plan.calibrations(OBJECTIVES))
    ranges, objectives = ClipRanges(calibrated), _calibrated(world, calibrated)
    study.stage(plan.sweep(objectives, ranges))
    settings = {name: own for name, own in world.settings.items() if METHODS[name].objective in objectives}
    study.stage(plan.settings(settings, ranges))
    if set(PAIR) <= set(objectives):
        under = [plan.calibration(METHODS[m].objective, world.reference.lr, c) for c in world.conditions for m in PAIR]
        study.stage(plan.conditions(ClipRanges([*calibrated, *study.stage(under)])))


def shortened(world: World, folder: Path, train: Train | None) -> Study:
    """The pair at the reference setting, with one seed."""
    world = replace(world, rounds=world.short_rounds, longer={}, seeds=world.seeds[:1])
    study = Study(world, folder, train)
    try:
        calibrations = [study.planner.calibration(METHODS[m].objective, world.reference.lr, "") for m in PAIR]
        ranges = ClipRanges(study.stage(calibrations))
        study.stage(study.planner.settings(dict.fromkeys(PAIR, (world.reference,)), ranges))
        study.complete = True
    except Incomplete as incomplete:
        print(f"{world.name}: {incomplete}")
    return study


def trainer(jobs: int, show: Callable[[str], None]) -> Train:
    """Trains what is not finished, `jobs` at a time."""

    def train(trials: Sequence[Trial]) -> dict[str, str]:
        pool = Pool(jobs, show)
        waiting = [trial.run for trial in trials if not trial.run.finished()]
        show(f"{trials[0].stage}: {len(trials) - len(waiting)} of {len(trials)} runs are finished")
        pool.train(waiting)
        return {str(folder): why for folder, why in pool.failed.items()}

    return train


def _calibrated(world: World, trials: Iterable[Trial]) -> list[str]:
    """The objectives that are calibrated at every learning rate of the grid."""
    found = {(trial.method, trial.lr) for trial in trials}
    return [name for name in OBJECTIVES if all((name, lr) in found for lr in world.learning_rates(name))]
