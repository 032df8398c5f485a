"""Summarizes the runs of the tiny world: `python benchmarks/tiny_world.py runs/tiny_world`.

Reads the runs of `guardlit ablate ... --out runs/tiny_world` and prints Markdown tables, one row a run: ratios and
gradients by denoising step over all rounds, and proxy, gold and diversity at equal steps and at an equal proxy.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Columns = dict[str, np.ndarray[Any, Any]]


def runs(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Objective, seed and newest log folder of each run."""
    for run in sorted(folder.glob("*/seed_*")):
        versions = sorted(run.glob("version_*"), key=lambda p: int(p.name.rpartition("_")[2]))
        if versions:
            yield run.parent.name, run.name.removeprefix("seed_"), versions[-1]


def stacked(folder: Path, name: str, value: str, step: str = "step") -> tuple[Any, Any]:
    """One column of all rounds, (N,), with each entry's denoising step, (N,)."""
    rounds = [np.load(path) for path in sorted((folder / name).glob("round_*.npz"))]
    found = [r for r in rounds if value in r.files]
    return np.concatenate([r[value] for r in found]), np.concatenate([r[step] for r in found])


def by_step(values: Any, steps: Any) -> list[Any]:
    """The entries of each denoising step."""
    return [values[steps == step] for step in np.unique(steps)]


def ratio_row(folder: Path) -> list[str]:
    """Shift of the log ratio in its std, and clip fractions at the last trained step."""
    log_ratio, steps = stacked(folder, "ratio", "log_ratio")
    clipped, _ = stacked(folder, "ratio", "clipped")
    shifts = [float(x.mean() / x.std()) for x in by_step(log_ratio, steps)]
    last = steps == steps.max()
    above, below = (float((clipped & sign)[last].mean()) for sign in (log_ratio > 0, log_ratio < 0))
    gradients = []
    for value, step in (("velocity", "step"), ("parameters", "parameter_step")):
        means = [float(x.mean()) for x in by_step(*stacked(folder, "gradient", value, step))]
        gradients.append(f"{max(means) / min(means):.1f}")
    return [f"{shifts[-1]:+.2f}", f"{max(map(abs, shifts)):.2f}", f"{below:.3f}", f"{above:.3f}", *gradients]


def gold(folder: Path) -> Columns:
    """The evaluations of `gold.csv` by column."""
    with (folder / "gold.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def at(columns: Columns, index: str, value: float) -> list[str]:
    """Step, proxy, gold Average and diversity where column `index` first reaches `value`, interpolated."""
    axis = columns[index]
    reached = np.flatnonzero(axis >= value)
    if not len(reached):
        return ["-"] * 4
    i = int(reached[0])
    weight = 0.0 if i == 0 else float((value - axis[i - 1]) / (axis[i] - axis[i - 1]))
    names = ("step", "proxy", "average", "digitdiversity")
    points = [float(c[i] if i == 0 else c[i - 1] + weight * (c[i] - c[i - 1])) for c in (columns[n] for n in names)]
    return [f"{points[0]:.0f}", *(f"{p:.3f}" for p in points[1:])]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def main() -> None:
    """Read and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--proxy", type=float, default=0.95, help="proxy reward at which runs are compared")
    args = parser.parse_args()
    found = list(runs(args.folder))
    names = ["objective", "seed"]
    header = [
        *names,
        "shift at step 8 (std)",
        "largest shift",
        "below",
        "above",
        "max/min, velocity",
        "max/min, parameters",
    ]
    print(table(header, [[objective, seed, *ratio_row(folder)] for objective, seed, folder in found]) + "\n")
    scores = {(objective, seed): gold(folder) for objective, seed, folder in found}
    last = min(float(columns["step"][-1]) for columns in scores.values())
    header = [*names, "step", "proxy", "gold Average", "diversity"]
    for index, value in (("step", 0.0), ("step", last / 2), ("step", last), ("proxy", args.proxy)):
        print(
            f"At {index} {value:g}:\n\n" + table(header, [[*k, *at(c, index, value)] for k, c in scores.items()]) + "\n"
        )
    header = [*names, "best gold Average", "at step", "last gold Average", "last proxy"]
    rows = []
    for key, columns in scores.items():
        best = int(columns["average"].argmax())
        cells = columns["average"][best], columns["step"][best], columns["average"][-1], columns["proxy"][-1]
        rows.append([*key, f"{cells[0]:.3f}", f"{cells[1]:.0f}", f"{cells[2]:.3f}", f"{cells[3]:.3f}"])
    print(table(header, rows))


if __name__ == "__main__":
    main()
