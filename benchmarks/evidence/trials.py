"""The runs of each stage: which command trains them, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.evidence.configuration import write_configurations
from benchmarks.evidence.worlds import METHODS, OBJECTIVES, PAIR, Setting, World
from guardlit.ablation.runs import Run, plan_run, preset_of

Ranges = Callable[[str, float, float, str], float]
"""Clip range of an objective, a learning rate, a clip fraction and a condition ("" for none)."""


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        stage: `calibration`, `sweep`, `runoff`, `final`, `common` or `conditions`.
        method: of `METHODS`.
        setting: None in a calibration, which clips 20 % by `auto`.
        lr: learning rate.
        clip_range: `auto` in a calibration.
        seed: of everything random.
        rounds: to train.
        condition: empty for none.
        run: how it is trained.
    """

    stage: str
    method: str
    setting: Setting | None
    lr: float
    clip_range: float | str
    seed: int
    rounds: int
    condition: str
    run: Run


class Planner:
    """Makes the trials of a world in a folder; writes the configurations that they train with.

    Args:
        world: the world.
        folder: of its runs.
    """

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.paths = write_configurations(world, folder)

    def calibrations(self, objectives: Iterable[str]) -> list[Trial]:
        """One of each objective for every learning rate of the grid."""
        return [self.calibration(name, lr, "") for name in objectives for lr in self.world.learning_rates]

    def calibration(self, objective: str, lr: float, condition: str) -> Trial:
        """Some rounds with `clip_range: auto`, whose log ratios place the clip ranges."""
        w = self.world
        place = Path("calibration", condition or "base", objective, f"lr_{lr:g}")
        return self._trial(
            "calibration", objective, None, lr, "auto", w.sweep_seeds[0], w.calibration_rounds, condition, place
        )

    def sweep(self, objectives: Iterable[str], ranges: Ranges) -> list[Trial]:
        """Every point of each objective's grid."""
        w = self.world
        return [
            self._chosen("sweep", m, s, seed, w.sweep_rounds, "", ranges, Path("sweep", m, s.name, f"seed_{seed}"))
            for seed in w.sweep_seeds
            for s in w.settings
            for m in objectives
        ]

    def runoff(self, finalists: Mapping[str, Iterable[Setting]], ranges: Ranges) -> list[Trial]:
        """The best points of each objective's grid with other seeds."""
        w = self.world
        return [
            self._chosen("runoff", m, s, seed, w.sweep_rounds, "", ranges, Path("runoff", m, s.name, f"seed_{seed}"))
            for seed in w.runoff_seeds
            for m, settings in finalists.items()
            for s in settings
        ]

    def finals(self, best: Mapping[str, Setting], ranges: Ranges) -> list[Trial]:
        """Every seed of each method at its best setting; of a full sweep the runs that are there."""
        w = self.world

        def place(method: str, setting: Setting) -> Path:
            swept = w.full_sweep and method in OBJECTIVES
            return Path("sweep", method, setting.name) if swept else Path("final", method)

        return [
            self._chosen("final", m, s, seed, w.final_rounds, "", ranges, place(m, s) / f"seed_{seed}")
            for seed in w.seeds
            for m, s in best.items()
        ]

    def common(self, best: Mapping[str, Setting], ranges: Ranges) -> list[Trial]:
        """Methods at settings that others have as their best, in addition to the final runs."""
        w = self.world
        return [
            self._chosen("common", m, s, seed, w.final_rounds, "", ranges, Path("common", m, s.name, f"seed_{seed}"))
            for seed in w.seeds
            for m, settings in w.common.items()
            for s in settings
            if best.get(m) != s
        ]

    def conditions(self, best: Mapping[str, Setting], ranges: Ranges) -> list[Trial]:
        """The pair under each condition, at the same learning rate and clip fraction."""
        w = self.world
        return [
            self._chosen(
                "conditions", m, best[m], seed, w.condition_rounds, c, ranges, Path("conditions", c, m, f"seed_{seed}")
            )
            for seed in w.condition_seeds
            for c in w.conditions
            for m in PAIR
        ]

    def _chosen(self, stage: str, method: str, setting: Setting, seed: int, rounds: int, condition: str,
                ranges: Ranges, place: Path) -> Trial:  # fmt: skip
        clip = ranges(METHODS[method].objective, setting.lr, setting.clipped, condition)
        return self._trial(stage, method, setting, setting.lr, clip, seed, rounds, condition, place)

    def _trial(self, stage: str, method: str, setting: Setting | None, lr: float, clip: float | str, seed: int,
               rounds: int, condition: str, place: Path) -> Trial:  # fmt: skip
        name = "final" if stage == "sweep" and self.world.full_sweep else stage
        config = self.paths[name if name in self.paths else "training"]
        options = [
            *self.world.options,
            *METHODS[method].options,
            *(self.world.conditions[condition] if condition else ()),
        ]
        rest = ["--config", str(config), "--trainer.max_epochs", str(rounds), *options]
        objective = preset_of(METHODS[method].objective, clip_range=clip)
        # what a finished run is compared with: the files and options, which stay comparable when defaults are added
        files = {"config": _content(self.world.config), "changes": _content(config) | {"base": None}}
        run = plan_run(
            self.folder / place, rest, objective, seed, lambda a: {**files, "options": " ".join(a[3:-2])}, lr
        )
        return Trial(stage, method, setting, lr, clip, seed, rounds, condition, run)


def _content(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content
