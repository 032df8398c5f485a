"""Sampling: a policy, a sampler's coefficients and noise give trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from guardlit.devices.transfer import to_device
from guardlit.errors import NonFiniteError
from guardlit.policies.base import FlowPolicy
from guardlit.rounds.noise import INITIAL, NoiseSource, Place
from guardlit.sde import ODE, Coefficients
from guardlit.types import Conditioning, Trajectory

Observer = Callable[[int, Tensor, Tensor], None]
"""Takes a step, its states and the policy's velocities there, (B, C, H, W) each."""


class VelocityError(NonFiniteError):
    """A velocity that is NaN or infinite, from which no image can be drawn.

    Attributes:
        row: of the batch, the first one in the first such step.
    """

    row = 0

    def with_prompt(self, prompt: str) -> NonFiniteError:
        """The same error with the row's prompt and the remedy."""
        remedy = "the weights are broken, or the precision overflows (bf16-mixed and 32-true do not)"
        return NonFiniteError(f"{self}, prompt '{prompt[:80]}': {remedy}")


@torch.no_grad()
def sample(
    policy: FlowPolicy,
    coefficients: Coefficients,
    conditioning: Conditioning,
    noise: NoiseSource,
    samples: Sequence[int],
    guidance_scale: float,
    record: Tensor | None = None,
    noisy: Tensor | None = None,
    origins: Sequence[int] | None = None,
    velocities: bool = True,
    tick: Callable[[], None] = lambda: None,
    observe: Observer = lambda step, x, v: None,
    begin: Callable[[int], None] = lambda step: None,
) -> Trajectory:
    """Draw one batch of images' latents.

    Args:
        policy: gives the velocity.
        coefficients: T steps, falling to sigma = 0.
        conditioning: embeddings, leading dimension B, on the policy's device.
        noise: where initial and step noise come from.
        samples: indices of the B images in their round.
        guidance_scale: 1 for none.
        record: the steps of each image to keep for training, rising, (B, S) int64 on the CPU; null keeps none.
        noisy: where the sampler's step is taken, not the ODE's, (B, T) bool on the CPU; null takes it everywhere.
        origins: whose initial noise each has, its own by default; equal ones have one prompt and share early calls.
        velocities: whether the velocities of the recorded steps are kept too.
        tick: called after every step, for a progress bar and to handle a signal.
        observe: called in every step.
        begin: called before every step, with its number.

    Returns:
        States and velocities of the recorded steps, (B, S, C, H, W) float32, and the clean latents.

    Raises:
        VelocityError: after the last step, so that `tick` is called equally often on every rank.
    """
    # of one number in `samples` alone, images may have different prompts
    starts, twins = (samples, range(len(samples))) if origins is None else (origins, origins)
    noisy = (torch.ones(len(samples), len(coefficients)).bool() if noisy is None else noisy) & (coefficients.std > 0)
    noises = noise.ahead([(starts, INITIAL), *_drawing(samples, noisy)], next(iter(conditioning.values())).device)
    x = next(noises)
    kept = _Record(record if record is not None else torch.empty(len(samples), 0, dtype=torch.int64), x, velocities)
    factors, finite = _factors(coefficients, noisy, x), []
    parted = noisy.cumsum(1) - noisy.long()  # how often noise was drawn before each step
    for step, sigma in enumerate(coefficients.sigmas[:-1].tolist()):
        begin(step)
        a, g, s = (f[step] for f in factors)
        v = _velocity(policy, x, sigma, conditioning, guidance_scale, _twins(twins, parted[:, step]))
        finite.append(v.isfinite().flatten(1).all(1))
        kept.put(step, x, v)
        observe(step, x, v)
        x = a * x + g * v
        if bool(noisy[:, step].any()):
            rows = _rows(noisy[:, step], x.device)
            x[rows] += s[rows] * next(noises)
        tick()
    _check_velocities(torch.stack(finite), coefficients.sigmas)
    return Trajectory(kept.states, kept.velocities, x)


def _drawing(samples: Sequence[int], noisy: Tensor) -> list[Place]:
    """The steps of `noisy` (B, T) in which noise is drawn, and for which of the samples."""
    rows = [[row for row, draws in enumerate(step) if draws] for step in noisy.T.tolist()]
    return [([samples[row] for row in there], step) for step, there in enumerate(rows) if there]


def _twins(origins: Sequence[int], parted: Tensor) -> list[int]:
    """A number for each row, equal where rows are in one state: one origin, and no noise drawn yet in `parted` (B,)."""
    equal = (parted == 0).tolist()
    return [origin if same else -1 - row for row, (origin, same) in enumerate(zip(origins, equal, strict=True))]


class _Record:
    """States and, if asked for, velocities of the steps `steps` (B, S), (B, S, C, H, W) each."""

    def __init__(self, steps: Tensor, like: Tensor, velocities: bool) -> None:
        self._steps = steps
        self.states = like.new_empty(*steps.shape, *like.shape[1:])
        self.velocities = torch.empty_like(self.states) if velocities else None

    def put(self, step: int, x: Tensor, v: Tensor) -> None:
        for slot in (self._steps == step).any(0).nonzero().flatten().tolist():
            rows = _rows(self._steps[:, slot] == step, x.device)
            self.states[rows, slot] = x[rows]
            if self.velocities is not None:
                self.velocities[rows, slot] = v[rows]


def _check_velocities(finite: Tensor, sigmas: Tensor) -> None:
    """Raise `VelocityError` unless all of `finite` (T, B) holds: one look at the device a batch, not one a step."""
    if bool(finite.all()):
        return
    step, row = (~finite).nonzero()[0].tolist()
    error = VelocityError(
        f"the policy's velocity is NaN or infinite at denoising step {step} (sigma {float(sigmas[step]):.3g})"
    )
    error.row = row
    raise error


def _rows(mask: Tensor, device: torch.device) -> Tensor | slice:
    """An index of the rows in a mask (B,) on the CPU; a slice where it is all of them, which costs no copy."""
    return slice(None) if bool(mask.all()) else to_device(mask.nonzero().flatten(), device)


def _factors(coefficients: Coefficients, noisy: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """a, g and s of each image's steps, (T, B, 1, ...) float32: the sampler's where `noisy`, else the ODE's."""
    ode = ODE().coefficients(coefficients.sigmas)
    shape = (len(coefficients), len(noisy), *[1] * (like.ndim - 1))
    factors = (
        torch.where(noisy, getattr(coefficients, name), getattr(ode, name)).T.reshape(shape).float()
        for name in ("sample", "velocity", "std")
    )
    return tuple(to_device(factor, like.device) for factor in factors)


def _velocity(
    policy: FlowPolicy, x: Tensor, sigma: float, conditioning: Conditioning, guidance_scale: float, twins: Sequence[int]
) -> Tensor:
    """The policy's velocity at x (B, C, H, W); rows with equal numbers in `twins` share one row of the call."""
    first = {twin: row for row, twin in reversed(list(enumerate(twins)))}
    rows = sorted(first.values())
    if len(rows) < len(x):
        index = to_device(torch.tensor(rows), x.device)
        place = {twin: rows.index(row) for twin, row in first.items()}
        back = to_device(torch.tensor([place[twin] for twin in twins]), x.device)
        x, conditioning = x[index], {name: table[index] for name, table in conditioning.items()}
    t = torch.full((len(x),), sigma, device=x.device, dtype=torch.float32)
    v = policy.velocity(x, t, conditioning, guidance_scale)
    return v[back] if len(rows) < len(twins) else v
