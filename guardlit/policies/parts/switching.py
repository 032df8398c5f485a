"""The weight sets of a diffusers policy, and the precision of its forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from guardlit.devices.dtypes import HALVES
from guardlit.errors import GuardlitError
from guardlit.policies.base import FlowPolicy, WeightSet
from guardlit.policies.weights.exported import has_exported_lora, without_adapters
from guardlit.policies.weights.lora import LoRA
from guardlit.policies.weights.merging import mergeable, merged, unmerged
from guardlit.policies.weights.sets import WeightSets


class SwitchingPolicy(FlowPolicy):
    """Switches between the weight sets of one transformer; see `DiffusersPolicy` for the attributes."""

    lora: LoRA | None
    weights_dtype: torch.dtype
    transformer: Any
    _sets: WeightSets

    @property
    def forward_dtype(self) -> torch.dtype | None:
        """See `FlowPolicy.forward_dtype`: that of frozen weights in half precision."""
        return self.weights_dtype if self.lora and self.weights_dtype in HALVES else None

    @contextmanager
    def using(self, weights: WeightSet) -> Iterator[None]:
        """See `FlowPolicy.using`; under an exported LoRA reference and base are the network without it."""
        exported = weights in ("reference", "base") and has_exported_lora(self.transformer)
        with (
            nullcontext() if weights == "policy" else unmerged(self.transformer),
            without_adapters(self.transformer) if exported else self._sets.using(weights),
        ):
            yield

    def base(self) -> AbstractContextManager[None]:
        """See `FlowPolicy.base`."""
        return self.using("base") if self.lora and self.lora.start else nullcontext()

    @property
    def mergeable(self) -> bool:
        """See `FlowPolicy.mergeable`."""
        return mergeable(self.transformer)

    def merged(self) -> AbstractContextManager[None]:
        """See `FlowPolicy.merged`."""
        return merged(self.transformer)

    def refresh_old(self) -> None:
        """See `FlowPolicy.refresh_old`."""
        self._sets.refresh_old()

    def old_state(self) -> dict[str, Tensor]:
        """See `FlowPolicy.old_state`."""
        return self._sets.old_state()

    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """See `FlowPolicy.load_old_state`."""
        self._sets.load_old_state(state)

    def allow_renewal(self) -> None:
        """See `FlowPolicy.allow_renewal`."""
        if self.transformer is not None and not self.renews:
            raise GuardlitError(
                "a policy whose weights are loaded cannot get a reference that is renewed: load it later"
            )
        self.renews = True

    def renew_reference(self) -> None:
        """See `FlowPolicy.renew_reference`."""
        self._sets.renew_reference()

    def reference_state(self) -> dict[str, Tensor]:
        """See `FlowPolicy.reference_state`."""
        return self._sets.reference_state()

    def load_reference_state(self, state: Mapping[str, Tensor]) -> None:
        """See `FlowPolicy.load_reference_state`."""
        self._sets.load_reference_state(state)
