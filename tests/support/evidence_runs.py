"""Run folders that look like those of the evidence, made without training."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.evidence.trials import Trial

STEPS = (0, 16, 32, 48)
PROMPTS = ("a one", "a two", "a three")

Peak = Callable[[Trial], float]
"""The highest gold Average of a run, reached at the third evaluation."""


class FakeTrainer:
    """Stands in for a pool: writes what a training would, and notes what it was asked for.

    Args:
        peak: of each run.
        fails: the runs that fail.
    """

    def __init__(self, peak: Peak = lambda _: 1.2, fails: Callable[[Trial], bool] = lambda _: False) -> None:
        self.peak, self.fails = peak, fails
        self.trained: list[Trial] = []

    def __call__(self, trials: Sequence[Trial]) -> dict[str, str]:
        failed: dict[str, str] = {}
        for trial in trials:
            if trial.run.finished():
                continue
            self.trained.append(trial)
            if self.fails(trial):
                trial.run.record(finished=False)
                failed[str(trial.run.folder)] = "exit code 1"
                continue
            write_run(trial, self.peak(trial))
            trial.run.record(finished=True, cpu_seconds=60.0)
        return failed


def write_run(trial: Trial, peak: float) -> None:
    """The files of one run: log ratios of 9 steps that grow with the learning rate, gold that rises and falls."""
    folder = trial.run.folder / "version_0"
    rng = np.random.default_rng(trial.seed)
    step = np.tile(np.arange(9), 400)
    log_ratio = rng.normal(size=step.size) * trial.lr * (1 + step)
    log_ratio[: step.size // 4] = 0.0  # on-policy
    limits = {"auto": 6 * trial.lr, "auto_per_step": trial.lr * (1 + step)} if trial.stage == "objectives" else {}
    limit = trial.clip_range if isinstance(trial.clip_range, float) else limits.get(trial.clip_range, np.inf)
    clipped = np.abs(log_ratio) > limit
    ratio = {"step": step, "log_ratio": log_ratio, "clipped": clipped}
    for name, arrays in {
        "ratio/round_00001.npz": ratio,
        "gradient/round_00001.npz": {
            "step": step,
            "velocity": 1.0 + step,
            "parameter_step": step,
            "parameters": 2.0 + step,
        },
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(folder / name, **arrays)
    write_csv(
        folder / "metrics.csv",
        [{"step": s, "epoch": s // 4, "drift/saturation_ratio": 1.5, "kl/sqrt_from_base": s / 8} for s in STEPS],
    )
    if trial.stage == "calibration":
        return
    np.savez(folder / "ratio/round_00002.npz", **ratio)
    average = np.array([1.0, (1 + peak) / 2, peak, peak - 0.05])
    proxy = np.array([0.6, 0.8, 0.9, 0.9 + trial.lr])
    noise = np.array([-0.1, 0.0, 0.1])
    rows = []
    for i, at in enumerate(STEPS):
        scores = {"one": average[i] + noise, "two": 2 * (average[i] + noise)}
        path = folder / f"gold/step_{at:08d}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, prompt=np.array(PROMPTS), proxy=proxy[i] + 0.1 * noise, **scores)
        row = {"step": at, "one": average[i], "two": 2 * average[i], "average": average[i], "proxy": proxy[i]}
        rows.append({**row, "proxy_std": 0.1})
    write_csv(folder / "gold.csv", rows)
    write_csv(folder / "kl.csv", [{"step": s, "from_base": (s / 8) ** 2, "sqrt_from_base": s / 8} for s in STEPS])


def write_csv(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """A table of numbers."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
