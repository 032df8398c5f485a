"""Base class of callbacks that report per round on per-sample values, exact over ranks, micro-batches and resumes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guardlit_callbacks.distributed.gather import gather_objects, is_first
from guardlit_callbacks.tools.folders import run_dir
from guardlit_callbacks.tools.lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from guardlit_callbacks.tools.logging import log_scalars
from guardlit_callbacks.tools.statistics import STEP_KEY, Array

Rows = dict[str, Array]
"""Named columns of per-sample values, float64 (n,) each."""


class RoundCallback(Callback):
    """Collects per-sample values over a round (an epoch) and reports on all of them at its end.

    Values stay on their device until the round ends: a micro-batch costs no synchronization. Then every rank gathers
    the rows of all ranks, in an order that does not depend on how they were distributed. A checkpoint holds the rows so
    far, so a round that is resumed in its middle is reported in full. A round whose last micro-batch precedes the
    checkpoint is reported when the next round starts, since Lightning does not end such an epoch a second time.

    Args:
        per_step: also log the scalars of each denoising step; there are hundreds.
    """

    def __init__(self, per_step: bool = False) -> None:
        self.per_step = per_step
        self._batches: list[dict[str, Tensor]] = []
        self._restored: Rows = {}
        self._round: int | None = None

    @abstractmethod
    def report(self, trainer: Trainer, number: int, rows: Rows) -> Mapping[str, float]:
        """Writes and plots the round; runs on all ranks.

        Args:
            trainer: the trainer.
            number: of the round, from 1.
            rows: the columns given to `collect`.

        Returns:
            The scalars to log, equal on every rank; those of a single denoising step only with `per_step`.
        """

    def collect(self, trainer: Trainer, columns: Mapping[str, Tensor]) -> None:
        """Keeps the values of one micro-batch.

        Args:
            trainer: the trainer.
            columns: detached tensors (B,), any device and dtype.

        Raises:
            MisconfigurationException: a column is not a vector, or not as long as the others.
        """
        first = next(iter(columns))
        for name, values in columns.items():
            if values.ndim != 1 or len(values) != len(columns[first]):
                raise MisconfigurationException(
                    f"{type(self).__name__}: the output for {name!r} has shape {tuple(values.shape)}, that for "
                    f"{first!r} {tuple(columns[first].shape)}; return one value per sample, (B,), of each"
                )
        self._batches.append(dict(columns))
        self._round = trainer.current_epoch

    def write(self, trainer: Trainer, folder: str, number: int, arrays: Rows) -> Path | None:
        """Writes `<run dir>/<folder>/round_RRRRR.npz` on rank 0, for round R of 1, 2, ....

        Returns:
            The path, on every rank; None if the run has no folder.
        """
        root = run_dir(trainer)
        path = root / folder / f"round_{number:05d}.npz" if root else None
        if path and trainer.is_global_zero:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
        return path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts afresh; a checkpoint's rows are loaded after this hook."""
        if stage == "fit":
            self._forget()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Reports a complete round from a checkpoint: Lightning is in the next one already."""
        if self._round != trainer.current_epoch:
            self._finish(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the round."""
        self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        """Reports the round and clears its rows.

        The scalars go straight to the loggers: the time of `pl_module.log` is quadratic in the number of keys. Scalars
        over all steps can be monitored like any other.
        """
        if self._round is None:
            return
        number = self._round + 1
        rows = self._finite(self._gather(), number)
        metrics = {k: v for k, v in self.report(trainer, number, rows).items() if not np.isnan(v)}
        of_round = {key: value for key, value in metrics.items() if not STEP_KEY.search(key)}
        log_scalars(trainer, metrics if self.per_step else of_round, trainer.global_step)
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in of_round.items()})
        self._forget()

    def _finite(self, rows: Rows, number: int) -> Rows:
        """The rows without samples that hold NaN or infinity."""
        if not rows:
            return rows
        good = np.isfinite(np.stack(list(rows.values()))).all(axis=0)
        if not good.all():
            left_out = f"{int((~good).sum())} of {good.size} samples of round {number} are left out"
            rank_zero_warn(f"{type(self).__name__}: {left_out}: they hold NaN or infinity")
        return {name: values[good] for name, values in rows.items()}

    def _forget(self) -> None:
        self._batches, self._restored, self._round = [], {}, None

    def _gather(self) -> Rows:
        """The rows of all ranks, sorted by their values. Collective."""
        names = self._batches[0].keys() if self._batches else ()
        mine = {name: torch.cat([b[name] for b in self._batches]).cpu().double().numpy() for name in names}
        parts = [part for rank in gather_objects([self._restored, mine]) for part in rank if part]
        rows = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
        order = np.lexsort(tuple(reversed(rows.values()))) if rows else np.zeros(0, int)
        return {name: values[order] for name, values in rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """The round's rows so far, of all ranks. Collective: Lightning calls every rank."""
        if self._round is None:
            return {}
        return {"round": self._round, "rows": {name: torch.from_numpy(v) for name, v in self._gather().items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores all rows on rank 0 and none on the others, so that each counts once on any number of ranks."""
        self._round = state_dict["round"]
        self._restored = {name: values.numpy() for name, values in state_dict["rows"].items()} if is_first() else {}
