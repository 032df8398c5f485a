"""A run's progress on the terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from guardlit.processes.lightning_internals import is_within_round
from guardlit.processes.phases import Phase
from guardlit.rounds.metrics import off_policy_clip_fraction
from guardlit.rounds.round_rewards import AVERAGE
from guardlit.training.console.terminal import LiveTable, Status, terminal
from guardlit.training.console.time_left import TimeLeft, in_words

TITLES = {"val/reward": "validation", "gold/average": "gold"}
"""Of the columns that only rounds with a validation fill, by metric."""


class RoundProgress(ProgressBar):
    """A table of rounds above one live line of phase and progress; without a terminal, one plain line a round.

    The clip fraction is that of the round's off-policy updates so far, which is `train/clip_off_policy` at its end.

    The time left is that of the remaining rounds and validations, if they take as long as those before them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._table: LiveTable | None = None
        self._left = TimeLeft()
        self._enabled = True
        self._status = Status("start", 0, 1, ())
        self._shown: dict[str, str] = {}
        self._validated = False
        self._began = time.monotonic()

    def disable(self) -> None:
        """Turn it off: Lightning does so on all ranks but 0."""
        self._enabled = False

    def enable(self) -> None:
        """Show it again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the live line."""
        self._left = TimeLeft()
        self._left.begin(half=is_within_round(trainer))
        self._began, self._shown = time.monotonic(), {}
        self._status = Status(self._head(trainer, "start"), 0, 1, ())
        console = terminal() if self._enabled else None
        if console is not None:
            self._table = LiveTable(console, lambda: self._status)
            self._table.open()

    def on_phase(self, trainer: pl.Trainer, phase: Phase, done: int, total: int) -> None:
        """Show the phase and its progress."""
        if phase == "encode" and done == total:
            self._left.begin_rollout()
        if self._table is not None:
            if phase != "update" or done == total or not self._shown:
                self._shown = self._numbers(trainer)  # reads tensors: not at every micro-batch
            self._show(trainer, phase, done, total)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop timing the round."""
        self._left.begin_validation()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """Show how much of the validation is done."""
        if self._table is not None and trainer.num_val_batches:
            self._show(trainer, "validate", batch_idx + 1, int(sum(trainer.num_val_batches)))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue to time the round; print the validation before the first round."""
        self._left.end_validation()
        self._validated = True
        if trainer.global_step == 0:
            self._print(trainer, 0, {})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the round."""
        self._left.end_round()
        now = time.monotonic()
        took, self._began = in_words(now - self._began), now
        self._print(trainer, trainer.current_epoch + 1, {"time": took})

    def _print(self, trainer: pl.Trainer, finished: int, more: dict[str, str]) -> None:
        """Print a row of the table, or a plain line, after so many rounds."""
        if not self._enabled:
            return
        numbers, validation = self._numbers(trainer), self._validation(trainer)
        if self._table is not None:
            row = {name.removeprefix("reward/"): value for name, value in (numbers | validation).items()}
            self._table.row({"round": self._round(trainer, finished), **row, **more})
        else:
            parts = [f"{name} {value}" for name, value in (numbers | validation | more).items() if value]
            left = self.seconds_left(trainer, finished) if finished else None
            parts += [f"{in_words(left)} left"] if left else []  # nothing at the end
            print("  ".join([f"round {self._round(trainer, finished)}", *parts]), file=sys.stderr, flush=True)
        self._validated = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the live line."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None

    def _show(self, trainer: pl.Trainer, phase: str, done: int, total: int) -> None:
        numbers = [f"{name.removeprefix('reward/')} {value}" for name, value in self._shown.items() if value]
        if (left := self.seconds_left(trainer, trainer.current_epoch)) is not None:
            numbers.insert(0, f"{in_words(left)} left")
        self._status = Status(self._head(trainer, phase), done, total, numbers)

    def _head(self, trainer: pl.Trainer, phase: str) -> str:
        return f"round {self._round(trainer, trainer.current_epoch + 1)}  {phase:8}"

    @staticmethod
    def _round(trainer: pl.Trainer, number: int) -> str:
        rounds = last_round(trainer)
        return f"{number}/{rounds}" if rounds else str(number)

    @staticmethod
    def _numbers(trainer: pl.Trainer) -> dict[str, str]:
        """Rewards and clip fraction of the round, by name; empty texts before there are any."""
        round_metrics: dict[str, float] = getattr(trainer.lightning_module, "round_metrics", {})
        rewards = {k.removeprefix(AVERAGE): v for k, v in round_metrics.items() if k.startswith(AVERAGE)}
        found = {f"reward/{name}": _digits(value) for name, value in rewards.items()}
        if (clipped := off_policy_clip_fraction(getattr(trainer.lightning_module, "clips", []))) is not None:
            found["clipped"] = f"{clipped:.2f}"
        return found

    def _validation(self, trainer: pl.Trainer) -> dict[str, str]:
        """What the round's validation logged, by title; empty texts in a round without one."""
        metrics = {title: trainer.callback_metrics.get(key) for key, title in TITLES.items()}
        known = {title: float(value) for title, value in metrics.items() if value is not None}
        return {title: _digits(value) if self._validated else "" for title, value in known.items()}

    def seconds_left(self, trainer: pl.Trainer, finished: int) -> float | None:
        """Seconds until the end after `finished` rounds; None where the end or a round's duration is not known."""
        last, every = last_round(trainer), trainer.check_val_every_n_epoch
        if last is None:
            return None
        validations = last // every - finished // every if every else 0
        validations += bool(every and last % every and finished < last)  # the last round always has one
        return self._left.seconds(last - finished, validations)


def last_round(trainer: pl.Trainer) -> int | None:
    """The number of the round in which `max_epochs` or `max_steps` ends the run; None where neither does."""
    ends = [trainer.max_epochs] if (trainer.max_epochs or 0) > 0 else []
    plan = getattr(getattr(trainer, "datamodule", None), "plan", None)
    if plan is not None and trainer.max_steps > 0:
        ends.append(-(-trainer.max_steps // plan.updates_per_round))
    return min(filter(None, ends), default=None)


def _digits(value: float) -> str:
    """Four significant digits, so that a reward near zero shows its changes too."""
    return f"{value:#.4g}".rstrip(".")
