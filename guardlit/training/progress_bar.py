"""A run's progress on the terminal."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from guardlit.processes.lightning_internals import is_within_round
from guardlit.processes.phases import Phase
from guardlit.training.time_left import TimeLeft

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class RoundProgress(ProgressBar):
    """One line: round, phase and its progress, reward, clip fraction, time left; without a terminal, a line a round.

    The time left is that of the remaining rounds and validations, if they take as long as those before them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._task: TaskID
        self._left = TimeLeft()
        self._enabled = True
        self._shown = ""

    def disable(self) -> None:
        """Turn it off: Lightning does so on all ranks but 0."""
        self._enabled = False

    def enable(self) -> None:
        """Show it again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self._left = TimeLeft()
        self._left.begin(half=is_within_round(trainer))
        if not self._enabled or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = ("[bold]{task.fields[round]}", "{task.description:8}", BarColumn(24), "{task.fields[numbers]}")
        layout = [TextColumn(c) if isinstance(c, str) else c for c in columns]
        self._bar = Progress(*layout, console=Console(stderr=True))
        self._task = self._bar.add_task("start", total=1, round=self._round(trainer), numbers="")
        self._bar.start()

    def on_phase(self, trainer: pl.Trainer, phase: Phase, done: int, total: int) -> None:
        """Show the phase and its progress."""
        if phase == "encode" and done == total:
            self._left.begin_rollout()
        if self._bar is not None:
            if phase != "update" or done == total or not self._shown:
                self._shown = self._numbers(trainer, trainer.current_epoch)  # reads tensors: not at every micro-batch
            name, numbers = self._round(trainer), self._shown
            self._bar.update(self._task, description=phase, completed=done, total=total, round=name, numbers=numbers)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop timing the round."""
        self._left.begin_validation()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue to time the round."""
        self._left.end_validation()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Without a terminal, one line a round."""
        self._left.end_round()
        if self._enabled and self._bar is None:
            numbers = self._numbers(trainer, trainer.current_epoch + 1)
            print(f"{self._round(trainer)}  {numbers}", file=sys.stderr, flush=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _round(self, trainer: pl.Trainer) -> str:
        rounds = trainer.max_epochs
        return f"round {trainer.current_epoch + 1}" + (f"/{rounds}" if rounds and rounds > 0 else "")

    def _numbers(self, trainer: pl.Trainer, finished: int) -> str:
        metrics = trainer.callback_metrics
        round_metrics: dict[str, float] = getattr(trainer.lightning_module, "round_metrics", {})
        shown = [f"{k.removesuffix('_mean')} {v:.3f}" for k, v in round_metrics.items() if k.endswith("_mean")]
        if "train/clip_above" in metrics:
            shown.append(f"clipped {float(metrics['train/clip_above'] + metrics['train/clip_below']):.2f}")
        if (left := self.seconds_left(trainer, finished)) is not None:
            shown.append(f"{int(left // 60)}:{int(left % 60):02d} left")
        return "  ".join(shown)

    def seconds_left(self, trainer: pl.Trainer, finished: int) -> float | None:
        """Seconds until the end after `finished` rounds; None where the end or a round's duration is not known."""
        last, every = trainer.max_epochs, trainer.check_val_every_n_epoch
        if not last or last < 0:
            return None
        validations = math.ceil(last / every) - finished // every if every and finished < last else 0
        return self._left.seconds(last - finished, validations)
