"""Parameters that FSDP2 shards over ranks, and parameters that every rank holds in full, handled alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from guardlit_callbacks.distributed.gather import is_first


def reshard(module: nn.Module) -> None:
    """Frees the full parameters that FSDP2 gathered for a forward pass without a backward, as in validation.

    Until then the module names the full parameters as its own and computes with them, and ignores writes to the shards.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@torch.inference_mode(False)  # under which nothing can be detached from a sharded parameter
def local(parameter: Tensor) -> Tensor:
    """This rank's shard of a parameter, detached; it shares the parameter's memory."""
    tensor = parameter.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, on every rank. Collective if the tensor is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded(part: Tensor, parameter: Tensor) -> Tensor:
    """The tensor of which `part` is this rank's shard, placed as `parameter`; `part` if that is not sharded."""
    if not isinstance(parameter, DTensor):
        return part
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(
        part.to(parameter.device), parameter.device_mesh, parameter.placements, shape=shape, stride=stride
    )


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A full tensor, placed as `parameter`. Collective if the parameter is sharded."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor) and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def on_first(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Full copies on the CPU: of sharded tensors on rank 0 only, of others on every rank. Collective.

    Args:
        named: the same names in the same order on all ranks; sharded tensors are gathered one by one.
    """
    first = is_first()
    collected = {}
    for name, tensor in named:
        gathered = full_tensor(tensor.detach())
        if first or not isinstance(tensor, DTensor):
            collected[name] = gathered.to("cpu", copy=True)
    return collected


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors is sharded over ranks."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())
