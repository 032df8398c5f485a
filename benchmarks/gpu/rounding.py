"""Effects of rounding: the noise floor per step of the published architectures, and float16's loss scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.models import policy_of, stir
from benchmarks.gpu.stage import Bench, Stage

CLIPS = (2e-6, 4e-6, 1e-4)
NAMES = {"sd35": "SD3.5-M", "flux": "FLUX.1-dev"}
GUIDANCE = {"sd35": 4.5, "flux": 3.5}
VARIANTS = {
    "sd35": {
        "fp16 weights": ("fp16", "fp16"),
        "fp32 weights, fp16 autocast": ("fp32", "fp16"),
        "fp32 weights, bf16 autocast": ("fp32", "bf16"),
        "fp32": ("fp32", "fp32"),
        "tf32": ("fp32", "tf32"),
    },
    "flux": {"bf16 weights": ("bf16", "bf16")},
}
"""Storage of the frozen weights and precision around them. Half-precision storage computes without autocast."""
ROWS = {"fp32": 3, "tf32": 9, "bf16": 9, "fp16": 9}
RANDOM = "random weights: weak evidence"
CASES = ("stored, same batch", "stored, a third of the batch", "recomputed, a third of the batch")


def floor(bench: Bench, family: str) -> None:
    """Two forward passes of one network: root mean square of the log ratio by step, largest step.

    Old velocities are stored from the rollout's batch, or recomputed at the micro-batch's size.
    """
    for storage in dict.fromkeys(storage for storage, _ in VARIANTS[family].values()):
        names = [name for name, (stored, _) in VARIANTS[family].items() if stored == storage]
        with policy_of(bench.folder / family, family, bench.kind, bench.rehearse, storage) as policy:
            stir(policy, 1e-3)
            for name in names[: bench.size(None, 1)]:
                label = f"{NAMES[family]}, {name}"
                bench.trying(
                    f"noise floor, {label}", lambda policy=policy, name=name: _floor(bench, policy, family, name)
                )
        del policy
        if bench.kind == "cuda":
            torch.cuda.empty_cache()


def _floor(bench: Bench, policy: Any, family: str, name: str) -> None:
    from guardlit.rounds.noise import NoiseSource
    from guardlit.rounds.rollout import sample
    from guardlit.sde import FlowSDE

    mode = VARIANTS[family][name][1]
    rows, scale = bench.size(ROWS[mode], 3), GUIDANCE[family]
    part = max(1, rows // 3)
    coefficients = FlowSDE(noise_level=0.7).coefficients(policy.sigmas(bench.size(10, 3)))
    trained = len(coefficients) - 1
    noise = NoiseSource(0, 0, policy.latent_shape)
    conditioning = policy.conditioning([f"prompt {i}" for i in range(rows)])
    record = torch.arange(trained).expand(rows, -1)
    with measure.precision(bench.kind, mode):
        drawn = sample(policy, coefficients, conditioning, noise, range(rows), scale, record=record)
        sizes: dict[str, list[float]] = {case: [] for case in CASES}
        for step in range(trained):
            x, sigma = drawn.latents[:, step], coefficients.sigmas[step].float().expand(rows).to(bench.kind)

            def velocities(size: int, grad: bool, x: Tensor = x, sigma: Tensor = sigma, rows: int = rows) -> Tensor:
                """Velocities (rows, ...) in micro-batches of that size, with a graph as in training or without it."""
                parts = []
                for i in range(0, rows, size):
                    some = {k: v[i : i + size] for k, v in conditioning.items()}
                    with torch.set_grad_enabled(grad):
                        v = policy.velocity(x[i : i + size], sigma[i : i + size], some, scale)
                    parts.append(v.detach())
                return torch.cat(parts)

            gain, eps = float(coefficients.velocity[step]), noise.draw(range(rows), step).to(bench.kind)
            ours = velocities(part, True)
            pairs = (
                (velocities(rows, True), drawn.velocity[:, step]),
                (ours, drawn.velocity[:, step]),
                (ours, velocities(part, False)),
            )
            for case, (new, old) in zip(CASES, pairs, strict=True):
                ratio = gain * ((new.double() - old.double()) * eps.double()).flatten(1).mean(1)
                sizes[case].append(float(ratio.square().mean().sqrt()))
    for case, values in sizes.items():
        largest = max(values)
        fits = ", ".join(f"{clip:.0e} {'yes' if largest <= clip / 2 else 'no'}" for clip in CLIPS)
        by_step = " ".join(f"{v:.1e}" for v in values)
        note = f"below half of the clip range: {fits}; {rows} images; by step {by_step}; {RANDOM}"
        bench.row(f"noise floor, {NAMES[family]}, {name}, {case}", largest, "log ratio", note)


def scale(bench: Bench) -> None:
    """Gradients of one micro-batch in float16 against float32, with and without accumulation in the loss scale."""
    accumulation = 576
    with policy_of(bench.folder / "sd35", "sd35", bench.kind, bench.rehearse) as policy:
        stir(policy, 1e-3)
        with measure.precision(bench.kind, "fp32"):
            exact = _gradient(bench, policy, 1.0)
        for label, factor in (("2^16", 2.0**16), ("2^16 x accumulation", 2.0**16 * accumulation)):
            with measure.precision(bench.kind, "fp16" if bench.kind == "cuda" else "bf16"):
                scaled = _gradient(bench, policy, factor / accumulation) * (accumulation / factor)
            error = float((scaled - exact).norm() / exact.norm())
            note = f"against float32; one micro-batch of {accumulation}; {RANDOM}"
            bench.row(f"float16 gradient, scale {label}: error", error, "relative", note)
            zeros = float(((scaled == 0) & (exact != 0)).double().mean())
            bench.row(
                f"float16 gradient, scale {label}: zeros", zeros, "fraction", "entries that float32 does not have at 0"
            )


def _gradient(bench: Bench, policy: Any, factor: float) -> Tensor:
    """Flat float64 gradient of the LoRA, of GRPO-Guard's loss times a factor."""
    from guardlit.objective import GRPOGuard
    from guardlit.rounds.noise import NoiseSource
    from guardlit.sde import FlowSDE

    rows = 2
    coefficients = FlowSDE(noise_level=0.7).coefficients(policy.sigmas(10))
    noise = NoiseSource(0, 0, policy.latent_shape)
    latents, eps = (noise.draw(range(rows), step).to(bench.kind) for step in (-1, 4))
    steps = torch.full((rows,), 4)
    conditioning = policy.conditioning(["a cat", "a dog"])
    velocity = policy.velocity(latents, coefficients.sigmas[steps].float().to(bench.kind), conditioning, 4.5)
    table = {"gain": coefficients.velocity, "std": coefficients.std, "dt": coefficients.dt}
    factors = {name: values[steps].to(bench.kind) for name, values in table.items()}
    advantage = torch.tensor([1.0, -1.0], device=bench.kind)
    out = GRPOGuard(1e-2)(velocity, velocity.detach(), eps, advantage=advantage, **factors)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(out.loss * factor, parameters)
    flat = torch.cat([g.flatten().double() for g in gradients])
    if not math.isfinite(float(flat.abs().max())):
        raise OverflowError(f"the gradient overflows at a factor of {factor:g}")
    return flat


def _floors(family: str) -> tuple[str, ...]:
    return tuple(f"noise floor, {NAMES[family]}, {name}, {case}" for name in VARIANTS[family] for case in CASES)


SCALES = ("2^16", "2^16 x accumulation")
STAGES = (
    Stage(
        "floor",
        "noise floor of SD3.5-M's architecture",
        lambda bench: floor(bench, "sd35"),
        90,
        _floors("sd35"),
        alone=False,
    ),
    Stage(
        "scale",
        "float16 gradients at two loss scales",
        scale,
        40,
        tuple(f"float16 gradient, scale {s}: {what}" for s in SCALES for what in ("error", "zeros")),
    ),
)
FLUX = Stage("flux", "noise floor of FLUX.1-dev's architecture", lambda b: floor(b, "flux"), 60, _floors("flux"))
