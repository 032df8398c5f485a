"""What the rounds of a run have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from guardlit.advantage import GroupAdvantage
from guardlit.gate import Gating
from guardlit.policies.base import FlowPolicy
from guardlit.rewards.reward import Reward
from guardlit.rounds.settings import Rollout
from guardlit.sde import Coefficients
from guardlit.surrogate import Objective


def _never(rollout_rows: int, training_rows: int) -> bool:
    return False


@dataclass(frozen=True)
class RoundSetup:
    """Values that every round of a run is collected with.

    Attributes:
        policy: the model, loaded.
        reward: the proxy, set up on the policy's device.
        objective: whose ratio a merged adapter must leave alone.
        rollout: how images are drawn.
        coefficients: of the sampler on the model's schedule.
        advantage: how rewards become advantages.
        noise_at_end: whether a last step that is not trained draws the sampler's noise.
        max_failed_fraction: of a round's rewards; more failed ones stop the run.
        keeps_velocities: whether the rollout's velocities are kept, given the rows of a rollout call and of a training
            call; see `OldPolicy.keeps`.
        half_precision: whether the network computes in half precision.
        forward_context: the precision's context of a forward pass.
        was_merged: whether the round before was drawn with a merged adapter; null where that is not known.
        gating: which images the KL penalty is for; null for all.
        kl_steps: factor of each denoising step's KL penalty, (T,); null is 1 for all.
    """

    policy: FlowPolicy
    reward: Reward
    objective: Objective
    rollout: Rollout
    coefficients: Coefficients
    advantage: GroupAdvantage = GroupAdvantage()  # noqa: RUF009 - frozen
    noise_at_end: bool = True
    max_failed_fraction: float = 0.01
    keeps_velocities: Callable[[int, int], bool] = _never
    half_precision: bool = False
    forward_context: Callable[[], AbstractContextManager[None]] = nullcontext
    was_merged: bool | None = None
    gating: Gating | None = None
    kl_steps: Tensor | None = None

    @property
    def elements(self) -> int:
        """D, latent elements of a sample."""
        return math.prod(self.policy.latent_shape)
