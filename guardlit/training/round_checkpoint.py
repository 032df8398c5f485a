"""The checkpoints of the newest rounds."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint


class RoundCheckpoint(ModelCheckpoint):
    """Keeps the newest rounds' checkpoints, `round_RRRRR.ckpt` after the R-th round.

    There are two by default: should one turn out to be corrupt, the one before it is still there. The oldest is removed
    once the newest is on disk.

    Args:
        save_top_k: rounds to keep; -1 for all.
    """

    def __init__(self, save_top_k: int = 2) -> None:
        super().__init__(
            filename="round_{round:05d}",
            auto_insert_metric_name=False,
            monitor="step",
            mode="max",
            save_top_k=save_top_k,
            save_on_train_epoch_end=True,
        )

    def format_checkpoint_name(self, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> str:
        """The file's name; `epoch` counts the rounds before this one."""
        return super().format_checkpoint_name({**metrics, "round": metrics["epoch"] + 1}, *args, **kwargs)

    @property
    def state_key(self) -> str:
        """That of Lightning's class, under which earlier versions stored this callback's state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)
