"""The network with its trained LoRA added to the weights, as one that never had adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.weights.full import network_on_first
from guardlit.policies.weights.merging import mergeable, merged


def merged_network(transformer: Any, kind: Any) -> Any:
    """A new network of the merged weights. Collective: every rank must call it.

    The sums are computed in float32 and rounded to the dtype of storage.

    Args:
        transformer: with a trained LoRA; it may be sharded. Its own weights are restored, bit for bit.
        kind: its class before it was sharded.

    Returns:
        The network on the CPU; None on all ranks but the first.

    Raises:
        GuardlitError: a base that no sum can be stored in.
    """
    if not mergeable(transformer):
        raise GuardlitError(
            "--merged true needs a base that is not quantized, and a plain LoRA of linear layers: leave --merged out, "
            "and let diffusers add the LoRA to the unquantized base (pipe.fuse_lora())"
        )
    with merged(transformer):
        return network_on_first(transformer, kind, _plain(transformer.state_dict()))


def _plain(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names of a network without adapters; those of adapters left out."""
    for name, tensor in state.items():
        if ".lora_" not in name:
            yield name.replace(".base_layer.", "."), tensor
