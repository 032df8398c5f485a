"""Overhead of a run's callbacks: `python benchmarks/callbacks.py [--config configs/tiny_digits.yaml] [--rounds 25]`.

Runs `guardlit fit` with the configuration's callbacks and a `PhaseTimer`, times each of their hooks, and prints each
callback's fraction of the training time: a ratio within one run, of wall time and of this process's CPU time, which
depends less on other programs. Hooks of validation count; sampling the validation images does not. The gold scorers'
time is reported apart from that of `GoldScore`.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections import defaultdict
from typing import Any

import lightning.pytorch as pl
from guardlit_callbacks import PhaseTimer
from rich.console import Console
from rich.table import Table

from guardlit.cli import main as guardlit_main
from guardlit.commands import lightning_cli

SCORERS = "gold scorers"
SCORED_IN = {"setup": "GoldScore.on_validation_epoch_start", "score": "GoldScore.on_validation_batch_end"}

spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
"""Wall and CPU seconds (all threads) by callback and hook, and of the training."""


def now() -> tuple[float, float]:
    """Wall and CPU seconds."""
    return time.perf_counter(), time.process_time()


def count(name: str, begun: tuple[float, float]) -> None:
    """Add the time since `begun` to a name."""
    for clock, (before, after) in enumerate(zip(begun, now(), strict=True)):
        spent[name][clock] += after - before


def timed(name: str, hook: Any) -> Any:
    """The hook, timed."""

    @functools.wraps(hook)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begun = now()
        try:
            return hook(*args, **kwargs)
        finally:
            count(name, begun)

    return wrapper


class Stopwatch(pl.Callback):
    """Times the other callbacks' hooks and the training."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wrap."""
        for callback in trainer.callbacks:
            kind = type(callback)
            if kind.__module__.startswith("guardlit_callbacks"):
                for name in (name for name in dir(pl.Callback) if name.startswith("on_") or name == "state_dict"):
                    if getattr(kind, name) is not getattr(pl.Callback, name):
                        setattr(callback, name, timed(f"{kind.__name__}.{name}", getattr(callback, name)))
            for scorer in getattr(callback, "scorers", {}).values():
                for name in ("setup", "score"):
                    setattr(scorer, name, timed(f"{SCORERS}.{name}", getattr(scorer, name)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.begun = now()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop."""
        count("training", self.begun)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny_digits.yaml")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--hooks", action="store_true", help="one row per hook instead of per callback")
    args = parser.parse_args()
    lightning_cli.DEFAULTS = {
        **lightning_cli.DEFAULTS,
        "callbacks": [PhaseTimer(), Stopwatch()],
    }
    with tempfile.TemporaryDirectory() as folder:
        options = ["--trainer.max_epochs", str(args.rounds), "--trainer.default_root_dir", f"{folder}/runs"]
        code = guardlit_main(["fit", "--config", args.config, *options])
    if code:
        raise SystemExit(code)
    total = spent.pop("training")
    for name, hook in SCORED_IN.items():
        spent[hook] = [a - b for a, b in zip(spent[hook], spent[f"{SCORERS}.{name}"], strict=True)]
    rows: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for hook, clocks in spent.items():
        callback = hook.partition(".")[0]
        for name in (hook if args.hooks else callback, "all", *(["all callbacks"] if callback != SCORERS else [])):
            rows[name] = [a + b for a, b in zip(rows[name], clocks, strict=True)]
    table = Table(title=f"{args.rounds} rounds, {total[0]:.1f} s of training, {total[1]:.1f} s of CPU")
    for column in ("callback", "seconds", "fraction", "CPU seconds", "fraction of CPU"):
        table.add_column(column, justify="left" if column == "callback" else "right")
    for name, clocks in sorted(rows.items(), key=lambda row: row[1]):
        cells = [cell for a, b in zip(clocks, total, strict=True) for cell in (f"{a:.3f}", f"{a / b:.2%}")]
        table.add_row(name, *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
