"""What the callbacks of a run cost: `python benchmarks/callbacks.py [--config configs/tiny_digits.yaml] [--rounds 10]`.

Runs `guardlit fit` with every hook of every `guardlit_callbacks` callback timed, and prints each callback's share of
the seconds between the start and the end of training: a ratio within one run. `TrainableEMA`, `GoldScore` and others
do work in validation too; the drawing of the validation images is not theirs.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections import defaultdict
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table

import guardlit.app
from guardlit.cli import main as guardlit_main

seconds: dict[str, float] = defaultdict(float)
calls: dict[str, int] = defaultdict(int)


def timed(name: str, hook: Any) -> Any:
    """A hook that counts its own time."""

    @functools.wraps(hook)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return hook(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - begun
            calls[name] += 1

    return wrapper


class Stopwatch(pl.Callback):
    """Wraps the other callbacks' hooks, and times the whole training."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wrap."""
        for callback in trainer.callbacks:
            if type(callback).__module__.startswith("guardlit_callbacks"):
                for name in dir(pl.Callback):
                    if name.startswith("on_") or name == "state_dict":
                        setattr(callback, name, timed(type(callback).__name__, getattr(callback, name)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.begun = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        seconds["training"] = time.perf_counter() - self.begun


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny_digits.yaml")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    guardlit.app.DEFAULTS = {**guardlit.app.DEFAULTS, "callbacks": [Stopwatch()]}
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_epochs", str(args.rounds), "--trainer.default_root_dir", f"{folder}/runs"]
        code = guardlit_main(["fit", "--config", args.config, *options])
    if code:
        raise SystemExit(code)
    whole = seconds.pop("training")
    table = Table(title=f"{args.rounds} rounds, {whole:.1f} s of training")
    for column in ("callback", "calls", "seconds", "share"):
        table.add_column(column, justify="left" if column == "callback" else "right")
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        table.add_row(name, str(calls[name]), f"{spent:.3f}", f"{spent / whole:.2%}")
    table.add_row("all", "", f"{sum(seconds.values()):.3f}", f"{sum(seconds.values()) / whole:.2%}")
    Console(width=90).print(table)


if __name__ == "__main__":
    main()
