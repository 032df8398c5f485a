"""Whether a long run keeps its memory and speed: `python benchmarks/soak.py [--rounds 2000] [--out runs/soak]`.

Runs `guardlit fit` in this process on a Stable Diffusion 3 folder of a few thousand random weights, with everything a
run can have: `clip_range: auto`, every callback, gold scores, TensorBoard and CSV, checkpoints of every round and of
the best gold, a validation every 50, and so many prompts that the text encoders load again every 64. A round takes a
fraction of a second; what is measured is the loop around the model.

After every round a line goes to `soak.csv` in `--out`: resident memory, open file descriptors, threads, seconds and CPU
seconds of the round. Every 50th round Python's garbage is collected, and the line also has the allocated size of the C
heap, the number of Python's objects, and the size of the run folder. At the end a table is printed, each cell the
median over the 64 rounds before it. The exit code is 1 where resident memory or the heap has grown by 1 % or more since
round 128, or file descriptors or threads are more.

Resident memory also depends on when the allocator returns memory to the system; the heap does not. Seconds depend on
the machine's load; CPU seconds of this process tell whether a round has become slower.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

import lightning.pytorch as pl
import psutil
import yaml
from tiny_folders import make_sd3

from guardlit.cli import main as guardlit_main
from guardlit.commands import lightning_cli
from guardlit.data.datamodule import ENCODE_ROUNDS
from guardlit.rewards.digits.networks import DIGITS

LIMIT = 0.01
"""Growth of memory from which a run fails."""
SELDOM = 50
"""Rounds between two validations, and between two measurements that take long."""
WINDOW = ENCODE_ROUNDS
"""Rounds of a median: those from one loading of the text encoders to the next."""
WARM = 2 * WINDOW
"""Rounds after which nothing may grow: the 1,024 prompts whose embeddings stay in memory are there after 64."""
PROMPTS = 16_000
"""Each is used once in 2,000 rounds of 8, so that the text encoders are needed throughout."""
COLUMNS = {
    "rss_mb": "resident MB",
    "heap_mb": "heap MB",
    "fds": "file descriptors",
    "threads": "threads",
    "cpu_s": "CPU s a round",
    "seconds": "s a round",
    "objects": "Python objects",
    "folder_mb": "run folder MB",
}
DIGITS_SHOWN = {"rss_mb": 1, "heap_mb": 1, "cpu_s": 4, "seconds": 4, "folder_mb": 1}

Row = Mapping[str, float]


class Recorder(pl.Callback):
    """Writes a line for every finished round, its validation and its checkpoint included.

    Args:
        path: of the CSV file.
        folder: the run's, whose size is measured.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self._path, self._folder = path, folder
        self._process = psutil.Process()
        self._begun: tuple[float, float] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do early what would look like growth later."""
        settle_interned_strings()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The previous round is finished."""
        self._record(trainer.current_epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last round is finished."""
        self._record(trainer.current_epoch)

    def _record(self, rounds: int) -> None:
        if self._begun is not None:
            seconds, cpu = (now - then for now, then in zip(clocks(), self._begun, strict=True))
            row = {
                "round": rounds,
                "rss_mb": self._process.memory_info().rss / 1e6,
                "fds": self._process.num_fds(),
                "threads": self._process.num_threads(),
                "cpu_s": cpu,
                "seconds": seconds,
                **(self._seldom() if rounds % SELDOM == 0 else dict.fromkeys(("heap_mb", "objects", "folder_mb"), "")),
            }
            new = not self._path.exists()
            with self._path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if new:
                    writer.writeheader()
                writer.writerow(row)
        self._begun = clocks()

    def _seldom(self) -> dict[str, float]:
        gc.collect()
        heap = psutil.heap_info()
        used, objects = heap.heap_used + heap.mmap_used, len(gc.get_objects()) + gc.get_freeze_count()
        return {"heap_mb": used / 1e6, "objects": objects, "folder_mb": size_of(self._folder) / 1e6}


def settle_interned_strings() -> None:
    """Let CPython's table of interned strings take its final size at once.

    Strings that come and go, as the parts of every path do, use up its slots. When none is left it is rebuilt, with
    room for three times the strings there are: with those of these libraries once twice as large, by 7.7 MB, which a
    run would reach after some 1,400 rounds, and then never again.
    """
    for i in range(1_000_000):
        sys.intern(f"soak {i}")


def clocks() -> tuple[float, float]:
    """Seconds, and CPU seconds of all threads."""
    return time.perf_counter(), time.process_time()


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum((Path(parent) / name).stat().st_size for parent, _, names in os.walk(folder) for name in names)


def settings(folder: Path, rounds: int) -> dict[str, Any]:
    """A run's configuration; writes the model and the prompts that it names."""
    make_sd3(folder / "model", sample_size=4)
    with (folder / "prompts.jsonl").open("w") as file:
        for i in range(PROMPTS):  # more than are encoded at once
            text = f"a photo of the handwritten digit {DIGITS[i % 10]}, sheet {i // 10}"
            file.write(json.dumps({"prompt": text, "digit": i % 10}) + "\n")
    checkpoint = "lightning.pytorch.callbacks.ModelCheckpoint"
    gold = [f"guardlit.rewards.digits.scorers.Digit{name}" for name in ("Gold", "Realism", "Diversity")]
    callbacks: dict[str, dict[str, Any]] = {
        "guardlit_callbacks.TrainableEMA": {},
        "guardlit_callbacks.SampleGrid": {},
        "guardlit_callbacks.RatioDistribution": {"raw": "raw_log_ratio", "normalized": "norm_log_ratio"},
        "guardlit_callbacks.GradientNorm": {"parameters_every": 5},
        "guardlit_callbacks.GoldScore": {"scorers": gold, "lower_is_better": ["digitrealism"]},
        "guardlit_callbacks.OverOptimizationStop": {"action": "warn"},
        "guardlit_callbacks.DriftSentinels": {},
        "guardlit_callbacks.PhaseTimer": {},
        "guardlit.training.export.ExportAtEnd": {},
    }
    kept = [
        {"monitor": "gold/average", "mode": "max", "save_top_k": 2, "filename": "gold_{step}"},
    ]
    policy = {"model": str(folder / "model"), "resolution": 32, "lora": {"rank": 4, "alpha": 8}}
    policy |= {"max_sequence_length": 32, "cache": str(folder / "cache")}
    return {
        "model": {
            "policy": {"class_path": "SD3Policy", "init_args": policy},
            "reward": "DigitProbability",
            "objective": {"class_path": "GRPOGuard", "init_args": {"clip_range": "auto"}},
            "rollout": {"num_inference_steps": 4, "guidance_scale": 1.0},
            "evaluation": {"num_inference_steps": 4, "guidance_scale": 1.0},
        },
        "data": {
            "train": str(folder / "prompts.jsonl"),
            "val": "guardlit://prompts/digits.jsonl",
            "val_images_per_prompt": 2,
            "prompts_per_round": 8,
            "images_per_prompt": 2,
            "updates_per_round": 2,
            "micro_batch": 8,
            "rollout_batch": 20,
        },
        "trainer": {
            "max_epochs": rounds,
            "accelerator": "cpu",
            "check_val_every_n_epoch": SELDOM,
            "default_root_dir": str(folder / "run"),
            "callbacks": [
                *({"class_path": name, "init_args": arguments} for name, arguments in callbacks.items()),
                *({"class_path": checkpoint, "init_args": arguments} for arguments in kept),
            ],
        },
    }


def soak(folder: Path, rounds: int) -> list[dict[str, float]]:
    """Run, and read what was recorded."""
    folder.mkdir(parents=True)  # a folder that is there holds another run
    config, record = folder / "run.yaml", folder / "soak.csv"
    config.write_text(yaml.safe_dump(settings(folder, rounds)))
    lightning_cli.DEFAULTS = {
        **lightning_cli.DEFAULTS,
        "callbacks": [Recorder(record, folder / "run")],
    }
    if code := guardlit_main(["fit", "--config", str(config)]):
        raise SystemExit(code)
    return read(record)


def read(path: Path) -> list[dict[str, float]]:
    """The rows of a `soak.csv`; what was not measured in a round is missing."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def summary(rows: Sequence[Row]) -> list[dict[str, float]]:
    """The state after round 128, or half of a shorter run, after each quarter that follows it, and at the end.

    Returns:
        By round, each column's median over the 64 rounds up to it.
    """
    rounds = len(rows)
    first = min(WARM, rounds // 2)
    window = max(min(WINDOW, first), 1)
    marks = sorted({first, *(mark for k in (1, 2, 3, 4) if (mark := rounds * k // 4) > first)})
    out = []
    for mark in marks:
        part = rows[mark - window : mark]
        found = {name: [row[name] for row in part if name in row] for name in COLUMNS}
        out.append({"round": mark, **{name: median(values) for name, values in found.items() if values}})
    return out


def verdict(rows: Sequence[Row]) -> list[str]:
    """What has grown that may not, a line each."""
    first, *_, last = summary(rows)
    faults = []
    for name in ("rss_mb", "heap_mb"):
        if name in first and name in last and (growth := last[name] / first[name] - 1) >= LIMIT:
            faults.append(f"{COLUMNS[name]} grew by {growth:.2%}: {first[name]:.1f} to {last[name]:.1f}")
    for name in ("fds", "threads"):
        if last[name] > first[name]:
            faults.append(f"{COLUMNS[name]} grew from {first[name]:g} to {last[name]:g}")
    return faults


def table(rows: Sequence[Row]) -> str:
    """`summary` in Markdown, and the change from its first to its last line."""
    found = summary(rows)
    first, last = found[0], found[-1]
    columns = [name for name in COLUMNS if all(name in row for row in found)]
    lines = [[str(row["round"]), *(f"{row[name]:.{DIGITS_SHOWN.get(name, 0)}f}" for name in columns)] for row in found]
    change = ["change", *(f"{last[name] / first[name] - 1:+.2%}" for name in columns)]
    head = [["round", *(COLUMNS[name] for name in columns)], ["---", *["---:"] * len(columns)]]
    return "\n".join(f"| {' | '.join(row)} |" for row in (*head, *lines, change))


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    args = parser.parse_args()
    rows = soak(args.out, args.rounds)
    print(table(rows))
    faults = verdict(rows)
    for fault in faults:
        print(fault)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
