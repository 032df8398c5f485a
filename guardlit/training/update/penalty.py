"""The KL penalty of a run: its gate and its reference, which change from round to round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.gate import Gating
from guardlit.kl import KL
from guardlit.policies.base import FlowPolicy
from guardlit.processes.world import World
from guardlit.rewards.reward import Reward
from guardlit.rounds.experience import Experience

Outputs = Mapping[str, Tensor]


class Penalty:
    """What a run keeps of its KL penalty.

    Args:
        kl: the settings; null for no penalty.
        reward: whose terms the gate compares.
        policy: the model, not loaded yet.
        trained: half-open range of the steps that some round may train.

    Raises:
        GuardlitError: settings that cannot have their effect.
    """

    def __init__(self, kl: KL | None, reward: Reward, policy: FlowPolicy, trained: tuple[int, int]) -> None:
        self.kl = kl
        self.gating: Gating | None = None
        self.renewed = 0
        """Index of the round that began with the last renewal; 0 without one, when the reference is the base."""
        self._measured: list[Tensor] = []  # mean divergences of the round's updates, () each
        if kl is None:
            return
        if not bool(kl.schedule(trained[1])[trained[0] :].any()):
            raise GuardlitError(
                f"kl.step_weights={list(kl.step_weights or ())} are 0 at every trained step, {trained[0]} to "
                f"{trained[1] - 1}, so that there is no penalty; set one of them, or kl: null"
            )
        if kl.gate is not None:
            self.gating = Gating(kl.gate, {name: term.every for name, term in reward.terms.items()})
        if kl.renews:
            policy.allow_renewal()

    def steps(self, number: int) -> Tensor | None:
        """Factor of each denoising step's penalty, (T,); None without a penalty."""
        return None if self.kl is None else self.kl.schedule(number)

    def begin_round(self, policy: FlowPolicy, index: int) -> None:
        """Renew the reference if it is due. Collective: every rank must call it.

        Args:
            policy: whose trained weights the reference becomes.
            index: of the round that begins.
        """
        if self.kl is not None and index > 0 and self._due(self.kl, index):
            policy.renew_reference()
            self.renewed = index
            rank_zero_info(f"round {index + 1}: the reference of model.kl is now the current policy")
        self._measured = []

    def _due(self, kl: KL, index: int) -> bool:
        if kl.renew_every is not None and index - self.renewed >= kl.renew_every:
            return True
        if kl.renew_above is None or not self._measured:
            return False
        return float(torch.stack([mean.cpu() for mean in self._measured]).nanmean()) > kl.renew_above

    def observe(self, outputs: Sequence[Outputs], world: World) -> None:
        """Remember an update's mean divergence, if `renew_above` asks for it. Collective: every rank must call it."""
        if self.kl is not None and self.kl.renew_above is not None:
            # a part of the update may be of a checkpoint without a penalty, and a skipped update may be NaN
            seen = [output["kl"] for output in outputs if "kl" in output]
            mean = torch.cat(seen).double().mean() if seen else torch.full((), torch.nan, device=world.device)
            self._measured.append(world.gather(mean).mean())

    def metrics(self, experience: Experience) -> dict[str, float]:
        """Scalars of a round.

        Logged at the end of a round:

        | key | unit |
        |---|---|
        | `train/kl_gated` | fraction of the round's images that are penalized, 0 to 1; with `kl.gate` |
        | `train/kl_gate_fraction` | fraction that the gate aims at, of the images with u >= 0, 0 to 1; with `kl.gate` |
        | `reference/renewed_round` | round that began with the last renewal, from 1, or 0; with a `kl` that renews |
        """
        found: dict[str, float] = {}
        if self.gating is not None and experience.kl_weight is not None:
            found["train/kl_gated"] = float(experience.kl_weight.double().mean())
            found["train/kl_gate_fraction"] = self.gating.fraction
        if self.kl is not None and self.kl.renews:
            found["reference/renewed_round"] = float(self.renewed + 1 if self.renewed else 0)
        return found

    def state(self, policy: FlowPolicy) -> dict[str, Any]:
        """Entries of a checkpoint, none where nothing changes. Collective: every rank must call it."""
        found: dict[str, Any] = {}
        if self.gating is not None:
            found["gate"] = self.gating.state_dict()
        if self.kl is not None and self.kl.renews:
            found |= {"renewed": self.renewed, "kl": [mean.cpu() for mean in self._measured]}
            found["reference"] = policy.reference_state()
        return {"penalty": found} if found else {}

    def load(self, part: Mapping[str, Any], policy: FlowPolicy) -> None:
        """Restore what `state` returned; a checkpoint without it is that of a run whose penalty never changed.

        Raises:
            GuardlitError: the checkpoint's reference was renewed, and this run could not renew or hold it.
        """
        state = part.get("penalty", {})
        if self.kl is not None and not self.kl.renews and state.get("renewed"):
            raise GuardlitError(
                f"the checkpoint's reference was renewed in round {state['renewed'] + 1}, and this run keeps the base: "
                "set model.kl.renew_every or renew_above as in that run"
            )
        if self.gating is not None:
            self.gating.load_state_dict(state.get("gate", {}))
        if self.kl is not None and self.kl.renews:
            policy.load_reference_state(state.get("reference", {}))
            self.renewed = int(state.get("renewed", 0))
            self._measured = list(state.get("kl", []))
