"""The plan of a world with its estimated cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import add

from benchmarks.evidence.worlds import METHODS, OBJECTIVES, PAIR, World

KL_FACTOR = 1.25
"""CPU seconds of a round with a KL penalty over one without: the base's velocities."""


@dataclass(frozen=True)
class Cost:
    """Of one stage.

    Attributes:
        stage: its name.
        runs: trainings.
        rounds: of all of them.
        cpu_seconds: of all of them, estimated.
    """

    stage: str
    runs: int
    rounds: int
    cpu_seconds: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.stage, self.runs + other.runs, self.rounds + other.rounds, self.cpu_seconds + other.cpu_seconds
        )


def full(world: World) -> list[Cost]:
    """The stages of the complete evidence."""
    conditions = len(PAIR) * len(world.conditions)
    calibrations = sum(len(world.learning_rates(name)) for name in OBJECTIVES)
    sweep = len(OBJECTIVES) * len(world.sweep.settings) if world.sweep else 0
    settings = [
        _cost(world, "settings", len(own) * len(world.seeds), world.rounds_of(name), _factor(name))
        for name, own in world.settings.items()
    ]
    return [
        _cost(world, "calibration", calibrations + conditions, world.calibration_rounds),
        _cost(world, "sweep", sweep, world.sweep.rounds if world.sweep else 0),
        reduce(add, settings),
        _cost(world, "conditions", conditions * len(world.condition_seeds), world.condition_rounds),
    ]


def short(world: World) -> list[Cost]:
    """The stages of the short version."""
    return [
        _cost(world, "calibration", len(PAIR), world.calibration_rounds),
        _cost(world, "settings", len(PAIR), world.short_rounds),
    ]


def _factor(method: str) -> float:
    return KL_FACTOR if METHODS[method].options else 1.0


def _cost(world: World, stage: str, runs: int, rounds: int, factor: float = 1.0) -> Cost:
    seconds = runs * (world.start_seconds + factor * rounds * world.round_seconds)
    return Cost(stage, runs, runs * rounds, seconds)


def describe(name: str, costs: list[Cost], jobs: int) -> str:
    """The plan as a table, with the hours that it takes on `jobs` cores."""
    rows = [(c.stage, str(c.runs), str(c.rounds), f"{c.cpu_seconds / 60:.0f}") for c in costs]
    total = sum(c.cpu_seconds for c in costs)
    rows.append(("total", str(sum(c.runs for c in costs)), str(sum(c.rounds for c in costs)), f"{total / 60:.0f}"))
    lines = [f"{stage:<12}{runs:>6}{rounds:>8}{minutes:>13}" for stage, runs, rounds, minutes in rows]
    head = f"{name:<12}{'runs':>6}{'rounds':>8}{'CPU minutes':>13}"
    minutes = total / 60 / jobs
    duration = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{minutes:.0f} minutes"
    return "\n".join([head, *lines, f"{duration} with {jobs} jobs on {jobs} idle cores"])
