"""`clip_range: auto` beside fixed ranges: `python benchmarks/clip_auto.py --out runs/clip_auto [--rounds 15]`.

Trains `configs/tiny_digits.yaml` once for each of five fixed clip ranges and once with `auto`, for three seeds, and
prints a Markdown table: the share of clipped transitions in the off-policy updates of rounds 1 to 3 and of the last
three, and proxy and gold Average of the last validation. A run that is there already is not repeated.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

RANGES = ("auto", "1e-5", "3e-5", "1e-4", "3e-4", "1e-3")
UPDATES = 4  # of a round in that configuration; the first is on-policy


def train(folder: Path, clip: str, seed: int, rounds: int) -> Path:
    """One run; its log folder."""
    from guardlit.cli import main as guardlit

    log = folder / f"clip_{clip}_seed_{seed}" / "version_0"
    if not (log / "done").is_file():
        options = {
            "--seed_everything": seed,
            "--model.objective.clip_range": clip,
            "--trainer.max_epochs": rounds,
            "--trainer.check_val_every_n_epoch": rounds,
            "--trainer.default_root_dir": log.parent,
        }
        words = [str(word) for pair in options.items() for word in pair]
        if code := guardlit(["fit", "--config", "configs/tiny_digits.yaml", *words]):
            raise SystemExit(code)
        (log / "done").touch()
    return log


def shares(log: Path) -> list[float]:
    """The share of clipped transitions in each round's off-policy updates."""
    with (log / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/clip_above")]
    clipped = [float(row["train/clip_above"]) + float(row["train/clip_below"]) for row in rows]
    rounds = [clipped[start : start + UPDATES] for start in range(0, len(clipped), UPDATES)]
    return [float(np.mean(updates[1:])) for updates in rounds]


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/clip_auto"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    args = parser.parse_args()
    header = ["clip range", "seed", "clipped, rounds 1, 2, 3", "clipped, last three", "last proxy", "last gold Average"]
    lines, ends = [], defaultdict(list)
    for seed in args.seeds:
        for clip in RANGES:
            log = train(args.out, clip, seed, args.rounds)
            clipped = shares(log)
            with (log / "gold.csv").open() as file:
                last = list(csv.DictReader(file))[-1]
            ends[clip].append((float(last["proxy"]), float(last["average"])))
            first = ", ".join(f"{share:.2f}" for share in clipped[:3])
            cells = [clip, str(seed), first, f"{np.mean(clipped[-3:]):.2f}", f"{ends[clip][-1][0]:.3f}"]
            lines.append([*cells, f"{ends[clip][-1][1]:.3f}"])
    for row in [header, ["---"] * len(header), *sorted(lines)]:
        print("| " + " | ".join(row) + " |")
    print()
    for clip, found in ends.items():
        proxy, average = np.array(found).T
        print(
            f"{clip}: proxy {proxy.mean():.3f} ({proxy.min():.3f} to {proxy.max():.3f}), "
            f"gold Average {average.mean():.3f} ({average.min():.3f} to {average.max():.3f})"
        )


if __name__ == "__main__":
    main()
