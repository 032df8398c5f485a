"""DDP as runs need it: what it leaves out of its broadcasts, and when it reduces gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from guardlit_callbacks import SyncDDP
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guardlit.devices.storage import is_wrapper
from guardlit.processes.lightning_internals import ddp_options
from guardlit.rounds.plan import read_micro_batches


def keep_buffers(strategy: Any) -> None:
    """Turn off DDP's broadcast of buffers: the policy's never change, and position tables take hundreds of megabytes.

    Args:
        strategy: of a Trainer that has not started; an explicit `broadcast_buffers` stays.
    """
    if isinstance(strategy, DDPStrategy):
        ddp_options(strategy).setdefault("broadcast_buffers", False)


def sync_gradients(strategy: Any, callbacks: Iterable[object]) -> None:
    """Make Lightning's DDP a `SyncDDP` where a callback reads the gradient of each micro-batch.

    Args:
        strategy: of a Trainer that has not started, by whatever name it was chosen; a subclass of DDP stays as it is.
        callbacks: of the Trainer.
    """
    if type(strategy) is DDPStrategy and read_micro_batches(callbacks):
        strategy.__class__ = SyncDDP  # which adds no state: every option that was given stays
        rank_zero_info("ddp: gradients are reduced at every micro-batch, which GradientNorm measures")


def keep_quantized(module: nn.Module) -> None:
    """Leave frozen tensor subclasses out of DDP's broadcast, which cannot send them; every rank reads them from files.

    Args:
        module: that DDP will wrap.
    """
    names = [n for n, p in module.named_parameters() if not p.requires_grad and is_wrapper(p)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]
