"""Base class of callbacks that look at all samples of a validation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch

from guardlit_callbacks.distributed.gather import gather_objects
from guardlit_callbacks.tools.lightning import Callback, LightningModule, MisconfigurationException, Trainer
from guardlit_callbacks.tools.logging import log_scalars
from guardlit_callbacks.tools.requirements import check_validation

Row = TypeVar("Row")


class ValidationCallback(Callback, Generic[Row]):
    """Collects rows from each validation batch, gathers them from all ranks, and reports on them at the end.

    Lightning's sanity check on a few batches is ignored; one on all batches (`num_sanity_val_steps=-1`) counts.

    Args:
        dataloader: index of the validation dataloader to read; None where there is only one.
    """

    def __init__(self, dataloader: int | None = None) -> None:
        self.dataloader = dataloader
        self._rows: list[Row] = []
        """This rank's rows of the validation in progress."""

    @abstractmethod
    def collect(self, outputs: Any) -> Sequence[Row]:
        """Returns the rows of one batch from what `validation_step` returned; tensors on the CPU."""

    @abstractmethod
    def report(self, trainer: Trainer, pl_module: LightningModule, ranks: Sequence[Sequence[Row]]) -> None:
        """Logs and writes; runs on all ranks.

        Args:
            trainer: the trainer.
            pl_module: the module.
            ranks: the rows of every rank, at least one in all.
        """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a module that does not validate."""
        check_validation(trainer, pl_module, self)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clears the rows of the last validation."""
        self._rows = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the batch's rows."""
        if self.dataloader is None and dataloader_idx > 0:
            name = type(self).__name__
            raise MisconfigurationException(
                f"{name}: validation has several dataloaders; name the one with the images by {name}(dataloader=0), say"
            )
        if not is_partial(trainer) and dataloader_idx == (self.dataloader or 0):
            self._rows += self.collect(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gathers the rows and reports on them. Collective."""
        if is_partial(trainer):
            return
        ranks = gather_objects(self._rows)
        self._rows = []
        if any(ranks):
            self.report(trainer, pl_module, ranks)


def is_partial(trainer: Trainer) -> bool:
    """Whether this validation is Lightning's sanity check on the first batches only."""
    return bool(trainer.sanity_checking) and trainer.num_sanity_val_steps != float("inf")


def log_validation(trainer: Trainer, pl_module: LightningModule, metrics: Mapping[str, float]) -> None:
    """Logs metrics that are equal on all ranks, at the number of optimizer steps made so far.

    Within `fit` loggers get them directly: Lightning's own step is one less, and it drops what a sanity check logs.
    """
    fits = trainer.state.fn == "fit"
    if fits:
        log_scalars(trainer, metrics, trainer.global_step)
    if trainer.sanity_checking:
        trainer.callback_metrics.update({key: torch.tensor(value) for key, value in metrics.items()})
    else:  # `trainer.validate` returns and prints what goes to loggers
        pl_module.log_dict(dict(metrics), batch_size=1, sync_dist=True, logger=not fits)
