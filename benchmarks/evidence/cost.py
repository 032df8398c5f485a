"""The plan of a world with its estimated cost."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.evidence.selection import FINALISTS
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


def full(world: World) -> list[Cost]:
    """The stages of the complete evidence."""
    objectives, methods = len(OBJECTIVES), len(METHODS)
    conditions = len(PAIR) * len(world.conditions)
    penalized = sum(bool(method.options) for method in METHODS.values())
    finals = penalized if world.full_sweep else methods
    common = sum(map(len, world.common.values())) * len(world.seeds)
    return [
        _cost(world, "calibration", objectives * len(world.learning_rates) + conditions, world.calibration_rounds),
        _cost(world, "sweep", objectives * len(world.settings) * len(world.sweep_seeds), world.sweep_rounds),
        _cost(world, "runoff", objectives * FINALISTS * len(world.runoff_seeds), world.sweep_rounds),
        _cost(world, "final", finals * len(world.seeds), world.final_rounds, 1 + (KL_FACTOR - 1) * penalized / finals),
        _cost(world, "common", common, world.final_rounds),
        _cost(world, "conditions", conditions * len(world.condition_seeds), world.condition_rounds),
    ]


def short(world: World) -> list[Cost]:
    """The stages of the short version."""
    return [
        _cost(world, "calibration", len(PAIR), world.calibration_rounds),
        _cost(world, "final", len(PAIR), world.short_rounds),
    ]


def _cost(world: World, stage: str, runs: int, rounds: int, factor: float = 1.0) -> Cost:
    seconds = runs * (world.start_seconds + factor * rounds * world.round_seconds)
    return Cost(stage, runs, runs * rounds, seconds)


def describe(world: World, costs: list[Cost], jobs: int) -> str:
    """The plan as a table, with the hours that it takes on `jobs` cores."""
    rows = [(c.stage, str(c.runs), str(c.rounds), f"{c.cpu_seconds / 60:.0f}") for c in costs]
    total = sum(c.cpu_seconds for c in costs)
    rows.append(("total", str(sum(c.runs for c in costs)), str(sum(c.rounds for c in costs)), f"{total / 60:.0f}"))
    lines = [f"{stage:<12}{runs:>6}{rounds:>8}{minutes:>13}" for stage, runs, rounds, minutes in rows]
    head = f"{world.name:<12}{'runs':>6}{'rounds':>8}{'CPU minutes':>13}"
    grid = ", ".join(f"{lr:g}" for lr in world.learning_rates), ", ".join(f"{f:g}" for f in world.clipped)
    minutes = total / 60 / jobs
    duration = f"{minutes / 60:.1f} hours" if minutes >= 60 else f"{minutes:.0f} minutes"
    settings = f"learning rates {grid[0]}; clipped fractions {grid[1]}"
    return "\n".join([head, *lines, settings, f"{duration} with {jobs} jobs on {jobs} idle cores"])
