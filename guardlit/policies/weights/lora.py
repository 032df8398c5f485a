"""LoRA: the policy and the old policy are two adapters on one frozen base."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from guardlit_callbacks.distributed import on_first, reshard, shard_like
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from guardlit.errors import GuardlitError, at_least, did_you_mean, positive
from guardlit.policies.base import WeightSet
from guardlit.policies.weights.adapters import activate, adapted_layers, compute_as_base, restored
from guardlit.policies.weights.attaching import attach
from guardlit.policies.weights.lora_reading import read_lora
from guardlit.policies.weights.lora_update import Update
from guardlit.policies.weights.sets import without_gradients

TRAINED, OLD = "default", "old"


@dataclass(frozen=True)
class LoRA:
    """A low-rank adapter (peft).

    Attributes:
        rank: of the update; 32 in Flow-GRPO's SD3.5-M settings.
        alpha: the update is scaled by alpha / rank.
        targets: suffixes of module names; null takes the model family's published list.
        init: `gaussian`, as published, or `default` (Kaiming); both start as no change at all.
        start: a LoRA that training starts from, a safetensors file or its folder; its own layers, ranks and alphas
            replace `rank`, `alpha`, `targets` and `init`. The reference stays the base without it.
    """

    rank: int = 32
    alpha: float = 64
    targets: tuple[str, ...] | None = None
    init: str = "gaussian"
    start: str | None = field(default=None, repr=False)  # the fingerprint has its layers

    def __post_init__(self) -> None:
        at_least(1, **{"lora.rank": self.rank})
        positive(**{"lora.alpha": self.alpha})
        if self.init not in ("gaussian", "default"):
            raise GuardlitError(f"lora.init={self.init} must be gaussian or default")
        if self.targets is not None and not self.targets:
            raise GuardlitError("lora.targets is empty; name layers, or omit it for the family's own list")
        if self.targets is not None and self.start is not None:
            raise GuardlitError(f"lora.targets and lora.start={self.start}: omit targets, which are that LoRA's layers")


class AdapterWeights:
    """The policy and the old policy as two adapters on one frozen base; without an adapter it is the reference.

    Args:
        transformer: a diffusers model with `add_adapter`; frozen here except for the trained adapter.
        lora: the adapter's settings.
        default_targets: module name suffixes for `lora.targets: null`.
        unused: layers that get no adapter.

    Raises:
        GuardlitError: a target that matches no module of the transformer.
    """

    def __init__(
        self, transformer: Any, lora: LoRA, default_targets: Sequence[str], unused: Sequence[str] = ()
    ) -> None:
        transformer.requires_grad_(False)
        if lora.start is not None:
            updates = _starting_updates(transformer, lora.start, unused)
            for name in (TRAINED, OLD):
                attach(transformer, name, updates)
        else:
            _add_untrained(transformer, lora, default_targets, unused)
        transformer.set_adapter(TRAINED)
        self._transformer, self._layers = transformer, adapted_layers(transformer)
        for name, parameter in transformer.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()

    def make_copies(self) -> None:
        """See `WeightSets.make_copies`."""
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
        with without_gradients(), restored(self._layers):
            activate(self._layers, OLD if weights == "old" else None)
            yield

    @torch.no_grad()
    def refresh_old(self) -> None:
        """Copy the trained adapter to the old one."""
        reshard(self._transformer)
        for _, trained, old in self._pairs():
            old.copy_(trained)

    def old_state(self) -> dict[str, Tensor]:
        """The old adapter under the trained one's parameter names."""
        reshard(self._transformer)
        return on_first((name, old) for name, _, old in self._pairs())

    @torch.no_grad()
    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the old adapter."""
        reshard(self._transformer)
        for name, _, old in self._pairs():
            old.copy_(shard_like(state[name], old))


def trained_layers(transformer: Any) -> dict[str, Any]:
    """The layers of the trained adapter by name."""
    layers = {id(layer) for layer in adapted_layers(transformer) if TRAINED in layer.scaling}
    return {name: module for name, module in transformer.named_modules() if id(module) in layers}


def describe(lora: LoRA, transformer: Any) -> str:
    """The adapter for a fingerprint: its settings, or what the LoRA that training started from gives instead."""
    if lora.start is None:
        return str(lora)
    named = trained_layers(transformer).items()
    layers = sorted((name, layer.r[TRAINED], round(layer.scaling[TRAINED], 6)) for name, layer in named)
    ranks = " and ".join(map(str, sorted({rank for _, rank, _ in layers})))
    return f"rank {ranks} in {len(layers)} layers ({hashlib.sha256(str(layers).encode()).hexdigest()[:16]})"


def _add_untrained(transformer: Any, lora: LoRA, default_targets: Sequence[str], unused: Sequence[str]) -> None:
    from peft import LoraConfig

    targets = list(lora.targets or default_targets)
    names = _check_targets(transformer, targets)
    if unused:  # listed in full, since peft's `exclude_modules` causes warnings when an exported adapter is loaded
        targets = sorted(names - set(unused))
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        init_lora_weights="gaussian" if lora.init == "gaussian" else True,
    )
    weightless = next(transformer.parameters()).is_meta
    with warnings.catch_warnings(), torch.device("meta" if weightless else "cpu"):  # equal numbers on any device
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # two adapters are intended
        for name in (TRAINED, OLD):
            transformer.add_adapter(config, adapter_name=name)


def _starting_updates(transformer: Any, start: str, unused: Sequence[str]) -> dict[str, Update]:
    """The updates to start from, of layers that affect the image."""
    updates = read_lora(Path(start).expanduser(), transformer, unfold=True)
    if any(update.magnitude is not None or update.bias is not None for update in updates.values()):
        raise GuardlitError(f"lora.start={start} is a LoRA with magnitudes (DoRA) or biases, which do not train here")
    updates = {name: update for name, update in updates.items() if name not in unused}
    if not updates:
        raise GuardlitError(f"lora.start={start} changes no layer that affects the image")
    if not next(transformer.parameters()).is_meta:
        ranks, alphas = ({f"{getattr(u, k):g}" for u in updates.values()} for k in ("rank", "alpha"))
        found = f"rank {' and '.join(sorted(ranks))}, alpha {' and '.join(sorted(alphas))}, {len(updates)} layers"
        rank_zero_info(f"lora.start={start}: {found}")
    return updates


def _check_targets(transformer: nn.Module, targets: Sequence[str]) -> set[str]:
    """Names of the linear layers that end in one of the targets."""
    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    found: set[str] = set()
    for target in targets:
        matches = {name for name in names if f".{name}".endswith(f".{target}")}
        if not matches:
            suffixes = sorted({".".join(name.split(".")[-k:]) for name in names for k in (1, 2)})
            text = f"LoRA target '{target}' names no linear layer of {type(transformer).__name__}"
            raise GuardlitError("; ".join(filter(None, [text, did_you_mean(target, suffixes, n=3)])))
        found |= matches
    return found
