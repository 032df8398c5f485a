"""LoRA: the policy, the old policy and a renewed reference are adapters on one frozen base."""

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

TRAINED, OLD, REFERENCE = "default", "old", "reference"


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
    """The policy and the old policy as two adapters on one frozen base, which without an adapter is the base model.

    The reference is the base until it is renewed; from then on it is a third adapter.

    Args:
        transformer: a diffusers model with `add_adapter`; frozen here except for the trained adapter.
        lora: the adapter's settings.
        default_targets: module name suffixes for `lora.targets: null`.
        unused: layers that get no adapter.
        renews: whether to add the adapter of a renewed reference.

    Raises:
        GuardlitError: a target that matches no module of the transformer.
    """

    def __init__(
        self,
        transformer: Any,
        lora: LoRA,
        default_targets: Sequence[str],
        unused: Sequence[str] = (),
        renews: bool = False,
    ) -> None:
        names = (TRAINED, OLD, REFERENCE) if renews else (TRAINED, OLD)
        transformer.requires_grad_(False)
        if lora.start is not None:
            updates = _starting_updates(transformer, lora.start, unused)
            for name in names:
                attach(transformer, name, updates)
        else:
            _add_untrained(transformer, lora, default_targets, unused, names)
        transformer.set_adapter(TRAINED)
        self._transformer, self._layers, self._renewed = transformer, adapted_layers(transformer), False
        for name, parameter in transformer.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()

    def make_copies(self) -> None:
        """See `WeightSets.make_copies`."""
        compute_as_base(self._transformer)
        self.refresh_old()

    def _pairs(self, adapter: str) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        """The trained adapter's name of each weight, the weight, and that of another adapter."""
        parameters = dict(self._transformer.named_parameters())
        for name, parameter in parameters.items():
            if f".{TRAINED}." in name:
                yield name, parameter, parameters[name.replace(f".{TRAINED}.", f".{adapter}.")]

    @contextmanager
    def using(self, weights: WeightSet) -> Iterator[None]:
        """Switch adapters; see `FlowPolicy.using`."""
        if weights == "policy":
            yield
            return
        with without_gradients(), restored(self._layers):
            activate(self._layers, self._adapter(weights))
            yield

    def _adapter(self, weights: WeightSet) -> str | None:
        if weights == "old":
            return OLD
        return REFERENCE if weights == "reference" and self._renewed else None

    def refresh_old(self) -> None:
        """Copy the trained adapter to the old one."""
        self._copy(OLD)

    def old_state(self) -> dict[str, Tensor]:
        """The old adapter under the trained one's parameter names."""
        return self._state(OLD)

    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the old adapter."""
        self._load(OLD, state)

    def renew_reference(self) -> None:
        """Copy the trained adapter to the reference's."""
        self._copy(REFERENCE)
        self._renewed = True

    def reference_state(self) -> dict[str, Tensor]:
        """The reference's adapter under the trained one's parameter names; empty while the reference is the base."""
        return self._state(REFERENCE) if self._renewed else {}

    def load_reference_state(self, state: Mapping[str, Tensor]) -> None:
        """Load the reference's adapter."""
        if state:
            self._load(REFERENCE, state)
        self._renewed = bool(state)

    @torch.no_grad()
    def _copy(self, adapter: str) -> None:
        reshard(self._transformer)
        for _, trained, other in self._pairs(adapter):
            other.copy_(trained)

    def _state(self, adapter: str) -> dict[str, Tensor]:
        reshard(self._transformer)
        return on_first((name, other) for name, _, other in self._pairs(adapter))

    @torch.no_grad()
    def _load(self, adapter: str, state: Mapping[str, Tensor]) -> None:
        reshard(self._transformer)
        for name, _, other in self._pairs(adapter):
            other.copy_(shard_like(state[name], other))


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


def _add_untrained(
    transformer: Any, lora: LoRA, default_targets: Sequence[str], unused: Sequence[str], adapters: Sequence[str]
) -> None:
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
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are intended
        for name in adapters:
            # a reference is only ever a copy: the numbers that it draws must not move those of the run
            with torch.random.fork_rng(devices=[], enabled=name == REFERENCE):
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
