"""Samplers as three vectors: every step is x_next = a x + g v + s noise.

Convention: x_t = (1 - t) x_0 + t noise, the network predicts v = noise - x_0, and sigma = t falls from 1 to 0.
An SDE is a function from the sigma schedule to (a, g, s), computed in float64; sampling, replay, log-probabilities
and Table 2 of GRPO-Guard (arXiv 2510.22319) all follow from them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_STEPS = 1000
"""Sampling steps that are allowed: the timesteps that models are trained on."""


@dataclass(frozen=True)
class Coefficients:
    """The steps of one sampler on one schedule; all tensors float64.

    Attributes:
        sigmas: the schedule, (T + 1,), falling to 0.
        sample: a, the factor of x, (T,).
        velocity: g, the factor of v, (T,); negative, since t falls.
        std: s, the standard deviation of the step, (T,); 0 where the step is deterministic.
        dt: sigma - sigma_next > 0, (T,).
    """

    sigmas: Tensor
    sample: Tensor
    velocity: Tensor
    std: Tensor
    dt: Tensor

    def __len__(self) -> int:
        return len(self.dt)

    def between(self, first: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """g, s and dt of the steps first to end - 1, (end - first,) each: the arguments of `Objective.bind`."""
        return self.velocity[first:end], self.std[first:end], self.dt[first:end]


def flow_match_sigmas(num_steps: int, shift: float = 3.0, num_train_timesteps: int = 1000) -> Tensor:
    """The schedule of diffusers' `FlowMatchEulerDiscreteScheduler` with a static shift, without diffusers.

    The shift is applied twice there: once to the training schedule, whose ends then bound the inference
    schedule, and once to that. At shift 3 and 10 steps the last sigma above 0 is 0.0089.

    Args:
        num_steps: T, sampling steps.
        shift: timestep shift; 1 leaves the schedule uniform.
        num_train_timesteps: length of the training schedule.

    Returns:
        Sigmas from 1 down to 0, (T + 1,) float64.

    Raises:
        ValueError: a step count below 1 or a shift that is not positive.
    """
    if num_steps < 1 or shift <= 0 or num_train_timesteps < 1:
        raise ValueError(
            f"num_steps={num_steps}, shift={shift}, num_train_timesteps={num_train_timesteps}: all must be > 0"
        )

    def shifted(sigma: Tensor) -> Tensor:
        return shift * sigma / (1 + (shift - 1) * sigma)

    lowest = shifted(torch.tensor(1 / num_train_timesteps, dtype=torch.float64))
    sigmas = shifted(torch.linspace(1.0, float(lowest), num_steps, dtype=torch.float64))
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def check_sigmas(sigmas: Tensor) -> Tensor:
    """Return sigmas (T + 1,) as float64, or raise `ValueError` unless they fall strictly from <= 1 to >= 0."""
    sigmas = torch.as_tensor(sigmas).to(torch.float64)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"sigmas need shape (T + 1,) with T >= 1, found {tuple(sigmas.shape)}")
    if not bool((sigmas.diff() < 0).all()) or float(sigmas[0]) > 1 or float(sigmas[-1]) < 0:
        raise ValueError(f"sigmas must fall strictly from at most 1 to at least 0, found {sigmas.tolist()}")
    return sigmas


class SDE(ABC):
    """A sampler: maps a sigma schedule to the coefficients of its steps."""

    noise_at_end: bool = True
    """Whether a rollout draws this sampler's noise in the step to t = 0 even if that is not trained; otherwise the step
    is the ODE's, which ends at the estimate of x_0."""

    @abstractmethod
    def coefficients(self, sigmas: Tensor) -> Coefficients:
        """Coefficients for sigmas (T + 1,) falling to 0; raises `ValueError` for any other schedule."""


def _noise_level(value: float, top: float = math.inf) -> float:
    if not 0 <= value <= top or value == math.inf:
        raise ValueError(f"noise_level={value} must lie in [0, {top}{')' if top == math.inf else ']'}")
    return value


def _langevin(sigmas: Tensor, diffusion: Tensor) -> Coefficients:
    """Euler-Maruyama of dx = (v + diffusion^2 / (2 t) (x + (1 - t) v)) dt + diffusion dw, backwards in t.

    Args:
        sigmas: (T + 1,).
        diffusion: sigma_t of the papers, (T,).
    """
    t, dt = sigmas[:-1], sigmas.diff()
    correction = diffusion.square() / (2 * t)
    return Coefficients(
        sigmas=sigmas,
        sample=1 + correction * dt,
        velocity=(1 + correction * (1 - t)) * dt,
        std=diffusion * (-dt).sqrt(),
        dt=-dt,
    )


class FlowSDE(SDE):
    """Flow-GRPO's SDE (arXiv 2505.05470): sigma_t = noise_level * sqrt(t / (1 - t)).

    At t = 1 the denominator takes the schedule's second sigma in place of t, as the published code does.
    With this sigma_t, g = (1 + noise_level^2 / 2) (t_next - t) at every step but the first.

    Args:
        noise_level: eta; 0.7 in Flow-GRPO and GRPO-Guard on SD3.5-M; 0 gives the Euler ODE.
    """

    def __init__(self, noise_level: float = 0.7) -> None:
        self.noise_level = _noise_level(noise_level)

    def coefficients(self, sigmas: Tensor) -> Coefficients:
        """Coefficients (T,) for sigmas (T + 1,)."""
        sigmas = check_sigmas(sigmas)
        t = sigmas[:-1]
        below_one = torch.where(t == 1, sigmas[1], t)
        return _langevin(sigmas, self.noise_level * (t / (1 - below_one)).sqrt())


class DanceSDE(SDE):
    """DanceGRPO's SDE (arXiv 2505.07818): constant diffusion sigma_t = noise_level.

    As there, images are decoded from the estimate of x_0 at the last step, unless that one is trained: at 16 steps and
    shift 3 its noise would be 0.12 of a latent's.

    Args:
        noise_level: eta; 0.3 in DanceGRPO on FLUX.1-dev; 0 gives the Euler ODE.
    """

    noise_at_end = False

    def __init__(self, noise_level: float = 0.3) -> None:
        self.noise_level = _noise_level(noise_level)

    def coefficients(self, sigmas: Tensor) -> Coefficients:
        """Coefficients (T,) for sigmas (T + 1,)."""
        sigmas = check_sigmas(sigmas)
        return _langevin(sigmas, torch.full_like(sigmas[:-1], self.noise_level))


class CPS(SDE):
    """Coefficients-preserving sampling: keeps the marginal's signal and noise levels exactly.

    x_next = (1 - t') x_0 + t' cos(noise_level pi / 2) x_1 + t' sin(noise_level pi / 2) noise, with x_0 = x - t v and
    x_1 = x + (1 - t) v.

    Args:
        noise_level: fraction of the noise that is drawn again, in [0, 1]; 0.8 in Flow-GRPO-Fast; 0 gives the Euler ODE.
    """

    def __init__(self, noise_level: float = 0.8) -> None:
        self.noise_level = _noise_level(noise_level, top=1)

    def coefficients(self, sigmas: Tensor) -> Coefficients:
        """Coefficients (T,) for sigmas (T + 1,)."""
        sigmas = check_sigmas(sigmas)
        t, t_next = sigmas[:-1], sigmas[1:]
        angle = self.noise_level * math.pi / 2
        kept = t_next * math.cos(angle)
        return Coefficients(
            sigmas=sigmas,
            sample=1 - t_next + kept,
            velocity=kept * (1 - t) - (1 - t_next) * t,
            std=t_next * math.sin(angle),
            dt=t - t_next,
        )


class ODE(SDE):
    """The deterministic Euler step x_next = x + v (t_next - t), for evaluation."""

    def coefficients(self, sigmas: Tensor) -> Coefficients:
        """Coefficients (T,) for sigmas (T + 1,); std is 0."""
        sigmas = check_sigmas(sigmas)
        return _langevin(sigmas, torch.zeros_like(sigmas[:-1]))
