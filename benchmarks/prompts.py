"""What a large prompt set costs: `python -m benchmarks.prompts [--prompts 1000000] [--out runs/prompts]`.

Writes a parquet file of that many distinct prompts (8 to 32 words and a metadata column, in one row group), and trains
two rounds of the tiny digits on it with `guardlit fit`, in a separate process; the same on ten prompts for
comparison. Then it resumes the large run from a checkpoint in the middle of the second round.

Printed for each run: resident memory once the prompts are read (and the peak until then), once the model is loaded and
when the first round starts; seconds from the loaded model to the first round's start and to its first denoising step;
and whether the resumed run ends with the same weights, bit for bit. The exit code is 1 where memory grows by 100 MB or
more over the run on ten prompts, the first round starts later than 5 s after the model is loaded, or weights differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import psutil
import yaml

from guardlit.rewards.digits.networks import DIGITS

ROOT = Path(__file__).resolve().parents[1]
LARGEST_GROWTH, LONGEST_START = 100, 5.0
"""MB and seconds."""
# fmt: off
WORDS = (
    "sheet", "paper", "ink", "pencil", "chalk", "brush", "thick", "thin", "slanted", "upright", "small", "large",
    "round", "narrow", "faded", "dark", "light", "gray", "white", "black", "centered", "tilted", "bold", "smooth",
    "rough", "scanned", "photographed", "school", "notebook", "letter", "envelope", "receipt", "ledger", "wall",
)
# fmt: on


class Recorder(pl.Callback):
    """Writes memory and time of the start of a run to a JSON file.

    Args:
        path: of the file.
    """

    def __init__(self, path: str) -> None:
        self._path, self._marks = Path(path), dict[str, dict[str, float]]()

    def _mark(self, name: str) -> None:
        if name in self._marks:
            return
        now, memory = time.perf_counter(), psutil.Process().memory_info().rss / 1e6
        status = Path("/proc/self/status").read_text()  # `ru_maxrss` would include the process that started this one
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
        self._marks[name] = {"seconds": now, "rss_mb": memory, "peak_mb": peak}
        self._path.write_text(json.dumps(self._marks))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The DataModule has read the prompts; the model is not loaded."""
        self._mark("prompts read")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The model is loaded."""
        self._mark("model loaded")

    def on_phase(self, trainer: pl.Trainer, phase: str, done: int, total: int) -> None:
        """A round begins with `encode`; then come the denoising steps."""
        self._mark({"encode": "round started", "rollout": "first step"}.get(phase, phase))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Both rounds are over."""
        self._mark("end")


def make_prompts(path: Path, count: int) -> None:
    """A parquet file of distinct prompts in one row group, each with the digit that the reward asks for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)

    def text(i: int) -> str:
        return f"a handwritten {DIGITS[i % 10]}, {' '.join(draw.choices(WORDS, k=draw.randint(4, 28)))}, number {i}"

    table = pa.table({"prompt": [text(i) for i in range(count)], "digit": [i % 10 for i in range(count)]})
    pq.write_table(table, path, row_group_size=count)


def fit(out: Path, prompts: str, *arguments: str) -> dict[str, dict[str, float]]:
    """Two rounds of the tiny digits; what `Recorder` wrote."""
    out.mkdir(parents=True)
    keep = {"save_top_k": -1, "filename": "update_{step}", "every_n_train_steps": 1, "auto_insert_metric_name": False}
    settings: dict[str, Any] = yaml.safe_load((ROOT / "configs/tiny_digits.yaml").read_text(encoding="utf-8"))
    settings["model"]["policy"]["init_args"]["cache"] = str(out / "cache")
    settings["data"] |= {"train": prompts, "val": None, "images_per_prompt": 4, "rollout_batch": 40, "micro_batch": 9}
    settings["trainer"] |= {
        "max_epochs": 2,
        "default_root_dir": str(out),
        "callbacks": [
            {"class_path": "benchmarks.prompts.Recorder", "init_args": {"path": str(out / "marks.json")}},
            {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keep},
        ],
    }
    config = out / "run.yaml"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "guardlit", "fit", "--config", str(config), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with (out / "log.txt").open("w") as log:  # mostly of prompts that are longer than this model reads
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=log, stderr=log)
    marks: dict[str, dict[str, float]] = json.loads((out / "marks.json").read_text())
    return marks


def differing_weights(a: Path, b: Path) -> list[str]:
    """Names of the trained weights and optimizer moments that are not equal, bit for bit."""
    sys.path.insert(0, str(ROOT / "tests/support"))
    from runs import differing

    return differing(a, b, keys=("state_dict", "optimizer_states"))


def faults(few: dict[str, dict[str, float]], many: dict[str, dict[str, float]], differ: list[str]) -> list[str]:
    """What does not hold, a line each."""
    growth = max(many[mark]["rss_mb"] - few[mark]["rss_mb"] for mark in ("prompts read", "round started", "end"))
    peak = many["prompts read"]["peak_mb"] - few["prompts read"]["peak_mb"]
    start = many["round started"]["seconds"] - many["model loaded"]["seconds"]
    found = [f"weights differ after a resume: {', '.join(differ)}"] if differ else []
    if max(growth, peak) >= LARGEST_GROWTH:
        found.append(f"memory grew by {max(growth, peak):.0f} MB")
    if start >= LONGEST_START:
        found.append(f"the first round started {start:.1f} s after the model was loaded")
    return found


def table(runs: dict[str, dict[str, dict[str, float]]]) -> str:
    """The marks in Markdown, a row each run."""
    columns = (
        "read: MB",
        "peak",
        "model loaded: MB",
        "round started: MB",
        "end: MB",
        "s to the round",
        "s to its steps",
    )
    lines = [f"| prompts | {' | '.join(columns)} |", "|" + "---:|" * (len(columns) + 1)]
    for name, marks in runs.items():
        memory = [marks["prompts read"]["rss_mb"], marks["prompts read"]["peak_mb"]]
        memory += [marks[mark]["rss_mb"] for mark in ("model loaded", "round started", "end")]
        loaded = marks["model loaded"]["seconds"]
        seconds = [marks[mark]["seconds"] - loaded for mark in ("round started", "first step")]
        cells = [name, *(f"{m:.0f}" for m in memory), *(f"{s:.2f}" for s in seconds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reading(prompts: Path) -> str:
    """Seconds of the pass that reads and checks the file, in a separate process."""
    code = (
        "import sys, time; from guardlit.data.prompts import load_prompts; "
        "wall, cpu = time.time(), time.process_time(); prompts = load_prompts(sys.argv[1]); "
        "print(f'{prompts.digest}: {time.time() - wall:.1f} s, {time.process_time() - cpu:.1f} s of CPU')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(prompts)], cwd=ROOT, check=True, capture_output=True)
    return done.stdout.decode().strip()


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("runs/prompts"))
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True)  # a folder that is there holds another run
    prompts = out / "prompts.parquet"
    make_prompts(prompts, args.prompts)
    print(f"{prompts}: {prompts.stat().st_size / 1e6:.0f} MB; read and checked: {reading(prompts)}")
    few = fit(out / "few", "guardlit://prompts/digits.jsonl")
    many = fit(out / "many", str(prompts))
    saved = {path.stem: path for path in (out / "many").rglob("update_*.ckpt")}
    fit(out / "resumed", str(prompts), "--ckpt_path", str(saved["update_6"]))  # of 8 updates, 4 a round
    (resumed,) = (out / "resumed").rglob("update_8.ckpt")
    differ = differing_weights(saved["update_8"], resumed)
    print(table({"10": few, f"{args.prompts:,}": many}))
    print(f"resumed within the second round: {len(differ)} weights and moments differ")
    found = faults(few, many, differ)
    for fault in found:
        print(fault)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
