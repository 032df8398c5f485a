"""Adapter layers of a network: which adapter is active, and in which precision it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from guardlit_callbacks.distributed import is_sharded
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn import functional
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


class CastOnce:
    """A cached cast of a tensor to another dtype, renewed only when the tensor has changed.

    With gradients enabled, the copy is part of the autograd graph. A cast saves nothing for its backward pass, so any
    number of backward passes may go through one copy: all micro-batches of an update share it.
    """

    def __init__(self) -> None:
        self._storage: Any = None  # held, so that no other tensor can reuse this memory
        self._version = -1
        self._copy: Tensor | None = None

    def __call__(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The copy of the tensor's current values."""
        storage, copy = tensor.untyped_storage(), self._copy
        fresh = copy is not None and storage is self._storage and tensor._version == self._version
        if not fresh or not _usable(copy, tensor, dtype):  # type: ignore[arg-type]
            copy = tensor.to(dtype)
            self._storage, self._version, self._copy = storage, tensor._version, copy
        assert copy is not None
        return copy

    def __deepcopy__(self, memo: Any) -> CastOnce:
        return CastOnce()

    def __reduce__(self) -> tuple[type[CastOnce], tuple[()]]:
        return CastOnce, ()


def _usable(copy: Tensor, tensor: Tensor, dtype: torch.dtype) -> bool:
    if copy.dtype != dtype or (copy.is_inference() and not torch.is_inference_mode_enabled()):
        return False
    return copy.requires_grad or not (tensor.requires_grad and torch.is_grad_enabled())


class CastLinear(nn.Linear):
    """A float32 adapter layer that computes in the dtype of its input, as its base layer does.

    Its weights stay float32 for the optimizer, averages, gradients and checkpoints. Under autocast it behaves as any
    linear layer.
    """

    once: CastOnce | None
    """Caches the cast weights; None casts them in every call, which FSDP2 needs: it refills the same memory."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the input's dtype."""
        device = input.device.type
        if self.weight.dtype == input.dtype or (device != "meta" and torch.is_autocast_enabled(device)):
            return super().forward(input)
        cached = self.once is not None and not torch.compiler.is_compiling()
        weight = self.once(self.weight, input.dtype) if cached and self.once else self.weight.to(input.dtype)
        return functional.linear(input, weight, None if self.bias is None else self.bias.to(input.dtype))


def adapted_layers(transformer: nn.Module) -> list[Any]:
    """The layers of a network that have an adapter."""
    from peft.tuners.lora import LoraLayer

    return [module for module in transformer.modules() if isinstance(module, LoraLayer)]


def compute_as_base(transformer: nn.Module) -> None:
    """Make all adapters of a network compute in the precision of their base layers.

    By default, peft casts the input to float32 and the result back, at every layer and every call. Cast weights are
    cached until they change, except in a sharded network: FSDP2 refills the buffers of gathered weights, and nothing
    shows that they have changed.

    Args:
        transformer: with adapters; call again after adding others.
    """
    _count_optimizer_steps()
    once = not is_sharded(dict(transformer.named_parameters()))
    for layer in adapted_layers(transformer):
        linears = (*layer.lora_A.values(), *layer.lora_B.values())
        layer.cast_input_dtype_enabled = not all(isinstance(linear, nn.Linear) for linear in linears)
        for linear in linears:
            if type(linear) is nn.Linear:
                linear.__class__ = CastLinear
            if isinstance(linear, CastLinear):
                linear.once = CastOnce() if once else None


@cache
def _count_optimizer_steps() -> None:
    """Increment the version of what an optimizer writes: fused and 8-bit optimizers do not, and `CastOnce` reads it."""
    register_optimizer_step_post_hook(_count_step)


def _count_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    increment_version([p for group in optimizer.param_groups for p in group["params"]])


def activate(layers: Sequence[Any], adapter: str | None) -> None:
    """Activate one adapter, or none.

    peft's own switches also set `requires_grad`, and walk through the entire network for it: 50 ms a call for a model
    with 3,500 modules.

    Args:
        layers: as `adapted_layers` gives them.
        adapter: its name; None for the base alone.
    """
    for layer in layers:
        layer._disable_adapters = adapter is None
        if adapter is not None:
            layer._active_adapter = [adapter]


@contextmanager
def restored(layers: Sequence[Any]) -> Iterator[None]:
    """Activate, after the context, the adapter that was active before it, or none.

    Args:
        layers: as `adapted_layers` gives them.
    """
    before = [(layer, layer._disable_adapters, layer._active_adapter) for layer in layers]
    try:
        yield
    finally:
        for layer, disabled, active in before:
            layer._disable_adapters, layer._active_adapter = disabled, active
