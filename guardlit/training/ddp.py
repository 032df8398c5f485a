"""What DDP leaves out of its broadcasts."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guardlit.devices.storage import is_wrapper
from guardlit.processes.lightning_internals import ddp_options


def keep_buffers(strategy: Any) -> None:
    """Turn off DDP's broadcast of buffers: the policy's never change, and position tables take hundreds of megabytes.

    Args:
        strategy: of a Trainer that has not started; an explicit `broadcast_buffers` stays.
    """
    if isinstance(strategy, DDPStrategy):
        ddp_options(strategy).setdefault("broadcast_buffers", False)


def keep_quantized(module: nn.Module) -> None:
    """Leave frozen tensor subclasses out of DDP's broadcast, which cannot send them; every rank reads them from files.

    Args:
        module: that DDP will wrap.
    """
    names = [n for n, p in module.named_parameters() if not p.requires_grad and is_wrapper(p)]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)  # type: ignore[no-untyped-call]
