"""The runs of the second study: which command trains each, what is finished, and what the plan costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.evidence.configuration import write_configurations
from benchmarks.evidence.cost import Cost
from benchmarks.evidence.objectives.methods import DRAWINGS, PLAN, Plan
from benchmarks.evidence.study import FAILED
from benchmarks.evidence.trials import Trial, content
from benchmarks.evidence.worlds import DIGITS
from guardlit.ablation.runs import plan_run, preset_of

Train = Callable[[Sequence[Trial]], dict[str, str]]
CHANGED = {"RatioDistribution": {"draw_every": 0}, "GradientNorm": {"draw_every": 0, "parameters_every": 0}}
"""Gradients of the parameters need micro-batches of one denoising step, which Flash-GRPO's are not."""
SHORT = 2
"""Methods of the short version, which has one seed."""


class Objectives:
    """The trials of a plan in a folder.

    Args:
        plan: the plan.
        folder: of its runs.
        train: None to train nothing and read what is finished.
    """

    def __init__(self, plan: Plan, folder: Path, train: Train | None) -> None:
        self.plan, self.folder = plan, folder
        world = replace(DIGITS, config=plan.config, every=plan.every)
        config = write_configurations(world, folder, CHANGED)["training"]
        self.trials = [self._trial(method, seed, config) for seed in plan.seeds for method in plan.methods]
        """Seed by seed, so that what is finished first compares all methods."""
        path = folder / FAILED
        self.failed: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if train is not None:
            new = train(self.trials)
            self.failed = {str(Path(place).relative_to(folder)): why for place, why in new.items()}
            path.write_text(json.dumps(self.failed, indent=1) + "\n", encoding="utf-8")

    def _trial(self, method: str, seed: int, config: Path) -> Trial:
        plan, row = self.plan, self.plan.methods[method]
        folder = self.folder / f"seed_{seed}" / method
        options = [str(self.folder / DRAWINGS) if option == DRAWINGS else option for option in row.options]
        rest = ["--config", str(config), *options, "--trainer.max_epochs", str(plan.rounds)]
        files = {"config": content(plan.config), "changes": content(config) | {"base": None}}
        objective = preset_of(row.objective, clip_range=row.clip_range)
        run = plan_run(folder, rest, objective, seed, lambda a: {**files, "options": " ".join(a[3:-2])}, plan.lr)
        return Trial("objectives", method, None, plan.lr, row.clip_range, seed, plan.rounds, "", run)

    def seeds(self) -> list[int]:
        """The seeds of which every method that has not failed is finished."""
        ended = {
            (trial.method, trial.seed): trial.run.finished()
            or str(trial.run.folder.relative_to(self.folder)) in self.failed
            for trial in self.trials
        }
        return [seed for seed in self.plan.seeds if all(ended[method, seed] for method in self.plan.methods)]

    def finished(self) -> dict[str, list[Trial]]:
        """The trials of the finished seeds, by method: those of methods that have all of these seeds."""
        seeds = self.seeds()
        found = {
            name: [t for t in self.trials if t.method == name and t.seed in seeds and t.run.finished()]
            for name in self.plan.methods
        }
        return {name: own for name, own in found.items() if own and len(own) == len(seeds)}


def draw(plan: Plan, folder: Path) -> None:
    """Draw the images that DDRL regularizes with, as many of each prompt as a round has, unless they are there."""
    needed = any(DRAWINGS in method.options for method in plan.methods.values())
    if needed and not (folder / DRAWINGS / "metadata.jsonl").is_file():
        command = ["sample", "--config", str(plan.config), "--n", "16", "--out", str(folder / DRAWINGS)]
        subprocess.run([sys.executable, "-m", "guardlit", *command], check=True)


def shortened(plan: Plan = PLAN) -> Plan:
    """The first methods with one seed."""
    return replace(plan, methods=dict(list(plan.methods.items())[:SHORT]), seeds=plan.seeds[:1])


def cost(plan: Plan) -> list[Cost]:
    """Of each seed."""
    rounds = plan.rounds * len(plan.methods)
    seconds = sum(
        DIGITS.start_seconds + plan.rounds * DIGITS.round_seconds * row.factor for row in plan.methods.values()
    )
    return [Cost(f"seed {seed}", len(plan.methods), rounds, seconds) for seed in plan.seeds]
