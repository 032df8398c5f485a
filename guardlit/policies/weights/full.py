"""Full fine-tuning: the old policy, the reference and the base are copies that are swapped with the trained weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from guardlit_callbacks.distributed import is_first, is_sharded, local, on_first, reshard, shard_like, sharded
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from guardlit.errors import GuardlitError
from guardlit.policies.base import WeightSet
from guardlit.policies.weights.sets import without_gradients


class FullWeights:
    """The trained weights of a network, and copies that are swapped in for the old policy, the base and the reference.

    The reference is the base until it is renewed; from then on it is one more copy.

    Args:
        transformer: trained in full, in float32.
        reference: keep a copy of the base too, for KL.
        device: where the copies are stored. From `cpu`, pinned if there is a GPU, they cross the bus whenever they are
            swapped in: once a round, and in every micro-batch with `old_velocity: recomputed` and again with KL.
            None stores them on the weights' device, which costs only memory.
        unused: layers that stay frozen.
    """

    def __init__(
        self, transformer: nn.Module, reference: bool, device: str | None = "cpu", unused: Sequence[str] = ()
    ) -> None:
        transformer.requires_grad_(True).float()
        for name in unused:
            transformer.get_submodule(name).requires_grad_(False)
        self._transformer = transformer
        self._device = device
        self._names = ("old", "base") if reference else ("old",)
        self._copies: dict[str, dict[str, Tensor]] = {}  # of this rank's shards

    def make_copies(self) -> None:
        """See `WeightSets.make_copies`."""
        self._copies = {name: self._copy() for name in self._names}

    def _copy(self) -> dict[str, Tensor]:
        named = self._transformer.named_parameters()
        return {name: local(p).to(self._device or p.device, copy=True) for name, p in named}

    @contextmanager
    def using(self, weights: WeightSet) -> Iterator[None]:
        """Swap a copy in; see `FlowPolicy.using`."""
        if weights == "policy":
            yield
            return
        if weights == "reference" and weights not in self._copies:
            weights = "base"
        if weights not in self._copies:
            raise GuardlitError(
                f"full fine-tuning keeps no {weights} weights, which KL needs, unless the policy says reference: true"
            )
        with without_gradients():
            reshard(self._transformer)
            trained: dict[str, Tensor] = {}
            try:
                for name, p in self._transformer.named_parameters():
                    trained[name] = _exchange(p, self._copy_for(p, weights, name))
                yield
            finally:
                reshard(self._transformer)
                for name, p in self._transformer.named_parameters():
                    if name in trained:
                        _exchange(p, trained.pop(name))

    @torch.inference_mode(False)  # validation swaps too: weights must not become inference tensors
    def _copy_for(self, parameter: nn.Parameter, weights: WeightSet, name: str) -> Tensor:
        """A copy on the parameter's device; from pinned memory the host does not wait for its transfer."""
        copies = self._copies[weights]
        if self._device is None:
            copies[name] = copies[name].to(parameter.device)  # the weights have moved since the copy was made
        elif parameter.is_cuda and not (copies[name].is_cuda or copies[name].is_pinned()):
            copies[name] = copies[name].pin_memory()
        return copies[name].to(parameter.device, non_blocking=True)

    def refresh_old(self) -> None:
        """Copy the trained weights to the old ones."""
        self._refresh("old")

    def old_state(self) -> dict[str, Tensor]:
        """The old weights by name."""
        return self._state("old")

    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the old weights."""
        self._load("old", state)

    def renew_reference(self) -> None:
        """Copy the trained weights to the reference; the base is kept."""
        self._refresh("reference")

    def reference_state(self) -> dict[str, Tensor]:
        """A renewed reference's weights by name; empty while the reference is the base."""
        return self._state("reference") if "reference" in self._copies else {}

    def load_reference_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a renewed reference."""
        if state:
            self._refresh("reference")
            self._load("reference", state)
        else:
            self._copies.pop("reference", None)

    @torch.no_grad()
    def _refresh(self, weights: WeightSet) -> None:
        reshard(self._transformer)
        if weights not in self._copies:
            self._copies[weights] = self._copy()
        for name, parameter in self._transformer.named_parameters():
            self._copies[weights][name].copy_(local(parameter))

    def _state(self, weights: WeightSet) -> dict[str, Tensor]:
        reshard(self._transformer)
        parameters = dict(self._transformer.named_parameters())
        return on_first((name, sharded(part, parameters[name])) for name, part in self._copies[weights].items())

    @torch.no_grad()
    def _load(self, weights: WeightSet, state: Mapping[str, Tensor]) -> None:
        reshard(self._transformer)
        parameters = dict(self._transformer.named_parameters())
        for name, part in self._copies[weights].items():
            part.copy_(local(shard_like(state[name], parameters[name])))


@torch.inference_mode(False)
@torch.no_grad()
def _exchange(parameter: nn.Parameter, values: Tensor) -> Tensor:
    """Assign values to a parameter, or to this rank's shard of it; returns the previous values."""
    if not isinstance(parameter, DTensor):
        before, parameter.data = parameter.data, values
        return before
    part = local(parameter)  # FSDP2 gathers from this memory
    before = part.clone()
    part.copy_(values)
    return before


def full_network(transformer: Any, kind: Any) -> Any:
    """The network, gathered into an unsharded copy on rank 0 if it is sharded. Collective: every rank must call it.

    Args:
        transformer: the network.
        kind: its class before it was sharded.

    Returns:
        An unsharded network; None on all ranks but the first if it was sharded.
    """
    reshard(transformer)
    if not is_sharded(dict(transformer.named_parameters())):
        return transformer
    return network_on_first(transformer, kind, transformer.state_dict().items())


def network_on_first(transformer: Any, kind: Any, tensors: Iterable[tuple[str, Tensor]]) -> Any:
    """A second network on rank 0, on the CPU, with gathered tensors. Collective: every rank must call it.

    Args:
        transformer: whose settings it has.
        kind: its class.
        tensors: by the network's names, sharded or not.

    Returns:
        The network; None on all ranks but the first.
    """
    state = on_first(tensors)
    if not is_first():
        return None
    with torch.device("meta"):
        network = kind.from_config(transformer.config)
    network.load_state_dict(state, assign=True)
    return network
