"""The three weight sets of one transformer: what trains, what sampled the round, and the base."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from guardlit_callbacks.distributed.gather import is_first
from guardlit_callbacks.distributed.sharded import is_sharded, local, on_first, reshard, shard_like, sharded
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from guardlit.errors import GuardlitError, at_least, positive
from guardlit.policies.base import WeightSet
from guardlit.policies.weights.adapters import activate, adapted_layers, compute_as_base

TRAINED, OLD = "default", "old"


@dataclass(frozen=True)
class LoRA:
    """A low-rank adapter (peft).

    Attributes:
        rank: of the update; 32 in Flow-GRPO's SD3.5-M settings.
        alpha: the update is scaled by alpha / rank.
        targets: suffixes of module names; null takes the model family's published list.
        init: `gaussian`, as published, or `default` (Kaiming); both start as no change at all.
    """

    rank: int = 32
    alpha: float = 64
    targets: tuple[str, ...] | None = None
    init: str = "gaussian"

    def __post_init__(self) -> None:
        at_least(1, **{"lora.rank": self.rank})
        positive(**{"lora.alpha": self.alpha})
        if self.init not in ("gaussian", "default"):
            raise GuardlitError(f"lora.init={self.init} must be gaussian or default")
        if self.targets is not None and not self.targets:
            raise GuardlitError("lora.targets is empty; name layers, or leave it out for the family's own list")


class WeightSets(Protocol):
    """How a policy switches between its weight sets; the network may be sharded once the object exists."""

    def keep(self) -> None:
        """Make the copies that there are besides what trains, before anything moves."""

    def using(self, weights: WeightSet) -> AbstractContextManager[None]:
        """See `FlowPolicy.using`."""

    def refresh_old(self) -> None:
        """See `FlowPolicy.refresh_old`."""

    def old_state(self) -> dict[str, Tensor]:
        """See `FlowPolicy.old_state`."""

    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """See `FlowPolicy.load_old_state`."""


@contextmanager
def _other_weights() -> Iterator[None]:
    """No gradients, and no half-precision copies of one set served to another by autocast's cache."""
    torch.clear_autocast_cache()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()


class AdapterWeights:
    """LoRA: the policy and the old policy are two adapters on one frozen base, the reference is none.

    Args:
        transformer: a diffusers model with `add_adapter`; frozen here except for the trained adapter.
        lora: the adapter's settings.
        default_targets: module name suffixes for `lora.targets: null`.
        unused: layers to leave alone.

    Raises:
        GuardlitError: a target that no module of the transformer has.
    """

    def __init__(
        self, transformer: Any, lora: LoRA, default_targets: Sequence[str], unused: Sequence[str] = ()
    ) -> None:
        from peft import LoraConfig

        targets = list(lora.targets or default_targets)
        names = _check_targets(transformer, targets)
        if unused:  # spelt out, since peft's `exclude_modules` makes readers of an exported adapter warn
            targets = sorted(names - set(unused))
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=targets,
            init_lora_weights="gaussian" if lora.init == "gaussian" else True,
        )
        transformer.requires_grad_(False)
        weightless = next(transformer.parameters()).is_meta
        with warnings.catch_warnings(), torch.device("meta" if weightless else "cpu"):  # the same numbers on any device
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are meant
            for name in (TRAINED, OLD):
                transformer.add_adapter(config, adapter_name=name)
        transformer.set_adapter(TRAINED)
        self._transformer, self._layers = transformer, adapted_layers(transformer)
        for name, parameter in transformer.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()

    def keep(self) -> None:
        """See `WeightSets.keep`."""
        compute_as_base(self._transformer)
        self.refresh_old()

    def _pairs(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        parameters = dict(self._transformer.named_parameters())
        for name, parameter in parameters.items():
            if f".{TRAINED}." in name:
                yield name, parameter, parameters[name.replace(f".{TRAINED}.", f".{OLD}.")]

    @contextmanager
    def using(self, weights: WeightSet) -> Iterator[None]:
        """Switch adapters; see `FlowPolicy.using`."""
        if weights == "policy":
            yield
            return
        with _other_weights():
            try:
                activate(self._layers, OLD if weights == "old" else None)
                yield
            finally:
                activate(self._layers, TRAINED)

    @torch.no_grad()
    def refresh_old(self) -> None:
        """Copy the trained adapter over the old one."""
        reshard(self._transformer)
        for _, trained, old in self._pairs():
            old.copy_(trained)

    def old_state(self) -> dict[str, Tensor]:
        """The old adapter under the trained one's parameter names."""
        reshard(self._transformer)
        return on_first((name, old) for name, _, old in self._pairs())

    @torch.no_grad()
    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """Put an old adapter back."""
        reshard(self._transformer)
        for name, _, old in self._pairs():
            old.copy_(shard_like(state[name], old))


def adapter_state(transformer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trained adapter's weights on the CPU under peft's names, and its settings; see `on_first`."""
    from peft.utils import get_peft_model_state_dict

    state = on_first((k, v) for k, v in transformer.state_dict().items() if f".{TRAINED}." in k)
    weights = get_peft_model_state_dict(transformer, state_dict=state, adapter_name=TRAINED)
    return weights, transformer.peft_config[TRAINED].to_dict()


def whole_network(transformer: Any, kind: Any) -> Any:
    """The network itself, or where it is sharded a whole one in its place, on process 0 alone.

    Args:
        transformer: to be called on all processes.
        kind: its class before it was sharded.
    """
    reshard(transformer)
    if not is_sharded(dict(transformer.named_parameters())):
        return transformer
    state = on_first(transformer.state_dict().items())
    if not is_first():
        return None
    with torch.device("meta"):
        network = kind.from_config(transformer.config)
    network.load_state_dict(state, assign=True)
    return network


class FullWeights:
    """Full fine-tuning: the old policy and the reference are copies that change places with the trained weights.

    Args:
        transformer: trained in whole, in float32.
        reference: keep a copy of the base too, for KL.
        device: where the copies rest. From `cpu`, pinned beside a GPU, they cross the bus whenever they change places
            with the weights: once a round, and in every micro-batch with `old_velocity: recomputed` and again with KL.
            Null leaves them beside the weights, which costs nothing but memory.
        unused: layers to leave alone.
    """

    def __init__(
        self, transformer: nn.Module, reference: bool, device: str | None = "cpu", unused: Sequence[str] = ()
    ) -> None:
        transformer.requires_grad_(True).float()
        for name in unused:
            transformer.get_submodule(name).requires_grad_(False)
        self._transformer = transformer
        self._device = device
        self._names = ("old", "reference") if reference else ("old",)
        self._copies: dict[str, dict[str, Tensor]] = {}  # of this process's part of the weights

    def keep(self) -> None:
        """See `WeightSets.keep`."""
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
        if weights not in self._copies:
            raise GuardlitError(
                f"full fine-tuning keeps no {weights} weights, which KL needs, unless the policy says reference: true"
            )
        with _other_weights():
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

    def _copy_for(self, parameter: nn.Parameter, weights: WeightSet, name: str) -> Tensor:
        """A copy on the parameter's device; from pinned memory its transfer keeps nobody but the GPU waiting."""
        copies = self._copies[weights]
        if self._device is None:
            copies[name] = copies[name].to(parameter.device)  # the weights have moved since the copy was made
        elif parameter.is_cuda and not (copies[name].is_cuda or copies[name].is_pinned()):
            copies[name] = copies[name].pin_memory()
        return copies[name].to(parameter.device, non_blocking=True)

    @torch.no_grad()
    def refresh_old(self) -> None:
        """Copy the trained weights over the old ones."""
        reshard(self._transformer)
        for name, parameter in self._transformer.named_parameters():
            self._copies["old"][name].copy_(local(parameter))

    def old_state(self) -> dict[str, Tensor]:
        """The old weights by name."""
        reshard(self._transformer)
        parameters = dict(self._transformer.named_parameters())
        return on_first((name, sharded(part, parameters[name])) for name, part in self._copies["old"].items())

    @torch.no_grad()
    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """Put old weights back."""
        reshard(self._transformer)
        parameters = dict(self._transformer.named_parameters())
        for name, part in self._copies["old"].items():
            part.copy_(local(shard_like(state[name], parameters[name])))


def _exchange(parameter: nn.Parameter, values: Tensor) -> Tensor:
    """Give a parameter, or this process's part of it, other values; returns those that it had."""
    if not isinstance(parameter, DTensor):
        before, parameter.data = parameter.data, values
        return before
    part = local(parameter)  # FSDP2 gathers from this memory
    before = part.clone()
    part.copy_(values)
    return before


def _check_targets(transformer: nn.Module, targets: Sequence[str]) -> set[str]:
    """Names of the linear layers that the targets are suffixes of."""
    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    found: set[str] = set()
    for target in targets:
        matches = {name for name in names if f".{name}".endswith(f".{target}")}
        if not matches:
            suffixes = sorted({".".join(name.split(".")[-k:]) for name in names for k in (1, 2)})
            close = difflib.get_close_matches(target, suffixes, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise GuardlitError(f"LoRA target '{target}' names no linear layer of {type(transformer).__name__}{hint}")
        found |= matches
    return found
