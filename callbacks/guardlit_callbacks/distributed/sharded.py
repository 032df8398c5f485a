"""Parameters of which each rank may hold a part (FSDP2), and parameters of which each holds the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def reshard(module: nn.Module) -> None:
    """Lets go of what FSDP2 has gathered for a forward pass without a backward, as in validation.

    As long as it is there it is what the module names as its parameters and what it computes with, whatever is written
    to the shards.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


@torch.inference_mode(False)  # under which nothing can be detached from a sharded parameter
def local(parameter: Tensor) -> Tensor:
    """This rank's part of a parameter, without gradient; writing to it writes to the parameter."""
    tensor = parameter.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on every rank; a collective if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded(part: Tensor, parameter: Tensor) -> Tensor:
    """The tensor of which `part` is this rank's, distributed as the parameter is; `part` itself if that is whole."""
    if not isinstance(parameter, DTensor):
        return part
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(
        part.to(parameter.device), parameter.device_mesh, parameter.placements, shape=shape, stride=stride
    )


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """The whole tensor, distributed as the parameter is; a collective if it is."""
    tensor = tensor.to(parameter.device)
    if isinstance(parameter, DTensor) and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor


def on_first(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copies of whole tensors on the CPU; of sharded ones on rank 0 alone, which writes them, and none elsewhere.

    Args:
        named: the same names in the same order on all ranks; sharded tensors are gathered one by one.
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    collected = {}
    for name, tensor in named:
        gathered = whole(tensor.detach())
        if first or not isinstance(tensor, DTensor):
            collected[name] = gathered.to("cpu", copy=True)
    return collected


def is_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors is spread over ranks."""
    return any(isinstance(tensor, DTensor) for tensor in tensors.values())
