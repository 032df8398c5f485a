"""Attention kernels: diffusers' backends, or torch's own for families that do not support those."""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from guardlit.errors import GuardlitError, did_you_mean

KERNELS = {
    "native": None,
    "_native_cudnn": SDPBackend.CUDNN_ATTENTION,
    "_native_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "_native_flash": SDPBackend.FLASH_ATTENTION,
    "_native_math": SDPBackend.MATH,
}
"""torch's kernels by diffusers' names; None lets torch choose."""
LACKING = ("No available kernel", "No viable backend")
"""How torch's errors begin when a kernel does not support a call."""


def set_attention(transformer: Any, backend: str) -> None:
    """Set the attention backend of a diffusers model.

    Args:
        transformer: changed in place.
        backend: a name of diffusers' `AttentionBackendName`; for a model whose processors do not support them, one of
            `KERNELS`.

    Raises:
        GuardlitError: an unknown backend, one whose package is missing, or one that this model does not support.
    """
    from diffusers.models.attention_dispatch import AttentionBackendName

    names = [name.value for name in AttentionBackendName]
    if backend not in names:
        hint = did_you_mean(backend, names, "diffusers has", n=2)
        raise GuardlitError(f"attention_backend={backend} is no attention backend; {hint}")
    attentions = [module for module in transformer.modules() if getattr(module, "processor", None) is not None]
    if attentions and all(hasattr(module.processor, "_attention_backend") for module in attentions):
        _by_diffusers(transformer, backend)
        return
    if backend not in KERNELS:
        raise GuardlitError(
            f"attention_backend={backend}: {type(transformer).__name__} supports torch's own kernels only; take one of "
            f"{', '.join(KERNELS)}"
        )
    if (kernel := KERNELS[backend]) is not None:
        for module in attentions:
            module.processor = _ByKernel(module.processor, backend, kernel)


def _by_diffusers(transformer: Any, backend: str) -> None:
    logger = logging.getLogger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that this API is experimental
    try:
        transformer.set_attention_backend(backend)
    except (ImportError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise GuardlitError(f"attention_backend={backend} cannot be used here: {reason}") from error
    finally:
        logger.setLevel(level)


class _ByKernel:
    """An attention processor that runs another one under one of torch's kernels, also in recomputed blocks."""

    def __init__(self, processor: Any, name: str, kernel: SDPBackend) -> None:
        self._processor, self._name, self._kernel = processor, name, kernel

    def __call__(
        self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **kwargs: Any
    ) -> Any:
        try:
            with sdpa_kernel(self._kernel):
                return self._processor(attn, hidden_states, encoder_hidden_states, **kwargs)
        except RuntimeError as error:
            if not str(error).startswith(LACKING):
                raise
            where = f"{hidden_states.dtype} on {hidden_states.device.type}"
            raise GuardlitError(
                f"attention_backend={self._name}: torch has no such kernel for {where}; null lets it choose"
            ) from error
