"""Validation images: drawn by the ODE from noise that no seed changes, and the policy's KL from the base there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from guardlit_callbacks import gaussian_step_kl
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.base import FlowPolicy
from guardlit.rounds.merging import Merge, evaluating
from guardlit.rounds.noise import EVALUATION, NoiseSource
from guardlit.rounds.rollout import VelocityError, sample
from guardlit.rounds.settings import Rollout, Sampling
from guardlit.sde import ODE, SDE, Coefficients
from guardlit.types import Conditioning


class ReferenceKL:
    """The exact KL of each SDE step of the policy from the base's, for one batch of images.

    A step x_next = a x + g v + s noise is a Gaussian, so its KL is g^2 ||v - v_base||^2 / (2 s^2), summed over latent
    elements. It is evaluated at the states of ODE trajectories. The rollout's SDE has the marginals of the ODE, so by
    the chain rule the sum over steps estimates the KL of the SDE's trajectories. Steps without noise count 0, and so do
    those that the base takes (`Sampling.base_steps`).

    Each other step costs one more call of the network, under the base. Neither states nor velocities are kept.

    Args:
        policy: the model, loaded.
        coefficients: of the rollout's SDE on the evaluation's schedule.
        steps: S, from the noisy end, that count.
        evaluation: how the images are drawn.
    """

    def __init__(self, policy: FlowPolicy, coefficients: Coefficients, steps: int, evaluation: Sampling) -> None:
        self._policy, self._evaluation, self._steps = policy, evaluation, steps
        self._sigmas, self._gains, self._stds = (
            values.tolist() for values in (coefficients.sigmas, coefficients.velocity, coefficients.std)
        )
        self._found: list[Tensor] = []

    @classmethod
    def of(cls, policy: FlowPolicy, sde: SDE, rollout: Rollout, evaluation: Sampling) -> ReferenceKL:
        """The KL on the evaluation's schedule, over the same fraction of its steps as the rollout can train.

        Raises:
            GuardlitError: none of these steps has noise.
        """
        coefficients = sde.coefficients(policy.sigmas(evaluation.num_inference_steps))
        steps = rollout.available_of(evaluation.num_inference_steps)
        if not bool((coefficients.std[:steps] > 0).any()):
            raise GuardlitError(
                f"KLFromBase: {type(sde).__name__} has no noise at the first {steps} of the "
                f"{evaluation.num_inference_steps} steps of model.evaluation, so that there is no KL: raise its "
                "noise_level, evaluation.num_inference_steps or rollout.timestep_fraction"
            )
        return cls(policy, coefficients, steps, evaluation)

    def observe(self, conditioning: Conditioning, step: int, x: Tensor, v: Tensor) -> None:
        """Add one step, in rising order.

        Args:
            conditioning: embeddings of the B images.
            step: of the trajectory.
            x: states, (B, C, H, W) float32.
            v: the velocities there: the policy's, or from the first of `base_steps` on the base's.
        """
        if step >= self._steps:
            return
        if self._stds[step] <= 0 or step >= self._evaluation.policy_steps:
            self._found.append(v.new_zeros(len(v), dtype=torch.float64))
            return
        sigma = torch.full((len(x),), self._sigmas[step], device=x.device, dtype=torch.float32)
        with self._policy.using("base"):
            base = self._policy.velocity(x, sigma, conditioning, self._evaluation.guidance_scale)
        self._found.append(gaussian_step_kl(v.double() - base.double(), self._gains[step], self._stds[step]))

    def values(self) -> Tensor:
        """The KL of each image's steps, (B, S) float64 in nats."""
        return torch.stack(self._found, 1)


def check_base(policy: FlowPolicy, base_steps: int) -> None:
    """Raise `GuardlitError` where the base is to take steps and the policy keeps no weights of it."""
    if base_steps and not policy.has_reference:
        raise GuardlitError(
            f"base_steps={base_steps}: full fine-tuning keeps no weights of the base model: set model.policy.reference "
            "to true, or base_steps to 0"
        )


@torch.no_grad()
def draw_fixed(
    policy: FlowPolicy,
    sampling: Sampling,
    prompts: Sequence[str],
    indices: Sequence[int],
    merge: Merge = "auto",
    kl: ReferenceKL | None = None,
) -> Tensor:
    """Draw one image per prompt by the Euler ODE, with the same noise in every validation and run.

    The policy takes the first T - k steps and the base the last k, `sampling.base_steps`.

    Args:
        policy: the model, loaded.
        sampling: steps, guidance, and who takes the last steps.
        prompts: B texts.
        indices: of the B images' initial noise.
        merge: whether an adapter is merged into the weights; see `Rollout.merge`.
        kl: measures the distance from the base on the way; null for none.

    Returns:
        (B, 3, height, width) uint8.

    Raises:
        GuardlitError: what `merging.check` and `check_base` raise.
        NonFiniteError: a velocity is NaN or infinite; names the prompt.
    """
    check_base(policy, sampling.base_steps)
    policy.encode(prompts)
    coefficients = ODE().coefficients(policy.sigmas(sampling.num_inference_steps))
    noise = NoiseSource(0, EVALUATION, policy.latent_shape)
    conditioning = policy.conditioning(prompts)
    draw = partial(sample, policy, coefficients, conditioning, noise, indices, sampling.guidance_scale)
    if kl is not None:
        draw = partial(draw, observe=partial(kl.observe, conditioning))
    try:
        with evaluating(policy, merge), ExitStack() as last_steps:

            def begin(step: int) -> None:
                if step == sampling.policy_steps:  # once a batch: each switch may copy all weights
                    last_steps.enter_context(policy.using("base"))

            final = draw(begin=begin).final
    except VelocityError as error:
        raise error.with_prompt(prompts[error.row]) from error
    return policy.decode(final)
