"""Compares `clip_range: auto` with fixed ranges: `python benchmarks/clip_auto.py --out runs/clip_auto [--rounds 40]`.

Trains `configs/tiny_digits.yaml` once for each of five fixed clip ranges and once with `auto`, for three seeds, and
prints Markdown tables: the clip fraction in the off-policy updates of rounds 1 to 3 and of the last three, and proxy
and gold Average over training. A finished run is not repeated; a shorter one resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

RANGES = ("auto", "1e-5", "3e-5", "1e-4", "3e-4", "1e-3")
UPDATES = 4  # of a round in that configuration; the first is on-policy
EVERY = 4  # rounds between validations


def train(folder: Path, clip: str, seed: int, rounds: int) -> Path:
    """Train or resume one run, and return its folder."""
    from guardlit.cli import main as guardlit

    run = folder / f"clip_{clip}_seed_{seed}"
    checkpoints = sorted(run.glob("version_*/checkpoints/round_*.ckpt"), key=lambda path: path.stem)
    made = int(checkpoints[-1].stem.partition("_")[2]) + 1 if checkpoints else 0
    if made < rounds:
        options = {
            "--seed_everything": seed,
            "--model.objective.clip_range": clip,
            "--trainer.max_epochs": rounds,
            "--trainer.check_val_every_n_epoch": EVERY,
            "--trainer.default_root_dir": run,
        }
        if made:
            options["--ckpt_path"] = checkpoints[-1]
        words = [str(word) for pair in options.items() for word in pair]
        if code := guardlit(["fit", "--config", "configs/tiny_digits.yaml", *words]):
            raise SystemExit(code)
    return run


def rows(run: Path, name: str) -> Iterator[dict[str, str]]:
    """Rows of a table over the parts of a run."""
    for path in sorted(run.glob(f"version_*/{name}")):
        with path.open() as file:
            yield from csv.DictReader(file)


def clip_fractions(run: Path) -> list[float]:
    """The clip fraction in each round's off-policy updates."""
    clipped = [
        float(row["train/clip_above"]) + float(row["train/clip_below"])
        for row in rows(run, "metrics.csv")
        if row.get("train/clip_above")
    ]
    rounds = [clipped[start : start + UPDATES] for start in range(0, len(clipped), UPDATES)]
    return [float(np.mean(updates[1:])) for updates in rounds]


def table(lines: list[list[str]]) -> None:
    """Print a Markdown table; the first line is its header."""
    for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]]:
        print("| " + " | ".join(line) + " |")
    print()


def span(values: list[float]) -> str:
    """Mean, lowest and highest."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/clip_auto"))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    parser.add_argument("--at", type=int, nargs="+", default=[12, 24, 40], help="rounds to show the scores of")
    args = parser.parse_args()
    runs = {clip: [train(args.out, clip, seed, args.rounds) for seed in args.seeds] for clip in RANGES}
    lines = [["clip range", *(f"clipped in round {k}" for k in (1, 2, 3)), "last three rounds"]]
    for clip, several in runs.items():
        clipped = [clip_fractions(run) for run in several]
        early = [", ".join(f"{run[k]:.2f}" for run in clipped) for k in range(3)]
        lines.append([clip, *early, ", ".join(f"{np.mean(run[-3:]):.2f}" for run in clipped)])
    table(lines)
    for column, title in (("proxy", "proxy"), ("average", "gold Average")):
        lines = [[title, *(f"round {k}" for k in args.at), "highest"]]
        for clip, several in runs.items():
            curves = [{int(r["step"]): float(r[column]) for r in rows(run, "gold.csv")} for run in several]
            ends = [span([curve[k * UPDATES] for curve in curves]) for k in args.at]
            lines.append([clip, *ends, span([max(curve.values()) for curve in curves])])
        table(lines)


if __name__ == "__main__":
    main()
