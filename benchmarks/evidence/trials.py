"""The runs of each stage: which command trains them, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.evidence.configuration import write_configurations
from benchmarks.evidence.worlds import METHODS, PAIR, Setting, World
from guardlit.ablation.runs import Run, plan_run, preset_of

Ranges = Callable[[str, float, float, str], float]
"""Clip range of an objective, a learning rate, a clip fraction and a condition ("" for none)."""


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        stage: `calibration`, `sweep`, `settings` or `conditions`.
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
        """One of each objective for every learning rate at which it is trained."""
        return [self.calibration(name, lr, "") for name in objectives for lr in self.world.learning_rates(name)]

    def calibration(self, objective: str, lr: float, condition: str) -> Trial:
        """Some rounds with `clip_range: auto`, whose log ratios place the clip ranges."""
        w = self.world
        place = Path("calibration", condition or "base", objective, f"lr_{lr:g}")
        return self._trial(
            "calibration", objective, None, lr, "auto", w.calibration_seed, w.calibration_rounds, condition, place
        )

    def sweep(self, objectives: Iterable[str], ranges: Ranges) -> list[Trial]:
        """Every point of each objective's grid."""
        if (sweep := self.world.sweep) is None:
            return []
        return [
            self._chosen(
                "sweep", m, s, sweep.seed, sweep.rounds, "", ranges, Path("sweep", m, s.name, f"seed_{sweep.seed}")
            )
            for s in sweep.settings
            for m in objectives
        ]

    def settings(self, settings: Mapping[str, Iterable[Setting]], ranges: Ranges) -> list[Trial]:
        """Every seed of each method at each of its settings, of full length."""
        w = self.world
        return [
            self._chosen(
                "settings", m, s, seed, w.rounds_of(m), "", ranges, Path("settings", m, s.name, f"seed_{seed}")
            )
            for seed in w.seeds
            for m, own in settings.items()
            for s in own
        ]

    def conditions(self, ranges: Ranges) -> list[Trial]:
        """The pair under each condition, at the reference setting."""
        w = self.world
        return [
            self._chosen(
                "conditions", m, w.reference, seed, w.condition_rounds, c, ranges,
                Path("conditions", c, m, f"seed_{seed}"),
            )
            for seed in w.condition_seeds
            for c in w.conditions
            for m in PAIR
        ]  # fmt: skip

    def _chosen(self, stage: str, method: str, setting: Setting, seed: int, rounds: int, condition: str,
                ranges: Ranges, place: Path) -> Trial:  # fmt: skip
        clip = ranges(METHODS[method].objective, setting.lr, setting.clipped, condition)
        return self._trial(stage, method, setting, setting.lr, clip, seed, rounds, condition, place)

    def _trial(self, stage: str, method: str, setting: Setting | None, lr: float, clip: float | str, seed: int,
               rounds: int, condition: str, place: Path) -> Trial:  # fmt: skip
        config = self.paths[stage if stage in self.paths else "training"]
        options = [
            *self.world.options,
            *METHODS[method].options,
            *(self.world.conditions[condition] if condition else ()),
        ]
        rest = ["--config", str(config), "--trainer.max_epochs", str(rounds), *options]
        objective = preset_of(METHODS[method].objective, clip_range=clip)
        # what a finished run is compared with: the files and options, which stay comparable when defaults are added
        files = {"config": content(self.world.config), "changes": content(config) | {"base": None}}
        run = plan_run(
            self.folder / place, rest, objective, seed, lambda a: {**files, "options": " ".join(a[3:-2])}, lr
        )
        return Trial(stage, method, setting, lr, clip, seed, rounds, condition, run)


def content(path: Path) -> dict[str, Any]:
    """A YAML file as plain data."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content
