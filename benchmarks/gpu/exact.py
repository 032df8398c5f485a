"""Compares the device with the CPU: log ratios, gradients, a complete tiny round."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.models import policy_of, stir
from benchmarks.gpu.runs import command, done, tiny_run, use_the_tests_helpers
from benchmarks.gpu.stage import Bench, NotMeasuredError, Stage

ROWS = 4


def run(bench: Bench) -> None:
    """Rounds in separate processes come first: the comparisons after them initialize the device."""
    bench.trying("a tiny round against the CPU's", lambda: _round(bench))
    for family in ("sd35", "flux"):
        _compare(bench, family)


def _compare(bench: Bench, family: str) -> None:
    """The tiny network of a family in float32 on the device, against float64 on the CPU."""
    with policy_of(bench.folder / family, family, bench.kind, tiny=True) as policy:
        stir(policy)
        other = copy.deepcopy(policy).cpu()
        other.transformer.double()
        other._dtype = torch.float64  # the policy caches it
        with measure.precision(bench.kind, "fp32"):
            ours = _step(policy, bench.kind)
        theirs = _step(other, "cpu")
    ratio = (ours[0].double() - theirs[0]).norm() / theirs[0].norm()
    bench.row(f"log ratio, float32 against the CPU's float64, {family}", ratio, "relative", "norm over 4 transitions")
    gradient = (ours[1].double() - theirs[1]).norm() / theirs[1].norm()
    bench.row(f"gradient, float32 against the CPU's float64, {family}", gradient, "relative", "norm over the LoRA")


def _step(policy: Any, kind: str) -> tuple[Tensor, Tensor]:
    """Log ratios (B,) and the flat gradient of one micro-batch, on the CPU."""
    from guardlit.objective import GRPOGuard
    from guardlit.rounds.noise import NoiseSource
    from guardlit.sde import FlowSDE

    coefficients = FlowSDE().coefficients(policy.sigmas(10))
    steps = torch.tensor([0, 3, 6, 8])
    noise = NoiseSource(0, 0, policy.latent_shape)
    latents, drawn = (noise.draw(range(ROWS), step).to(kind) for step in (-1, 0))
    conditioning = policy.conditioning(["a cat", "a dog", "a house", "the sky"])
    sigma = coefficients.sigmas[steps].float().to(kind)
    with policy.using("old"):
        old = policy.velocity(latents, sigma, conditioning, 1.0)
    velocity = policy.velocity(latents, sigma, conditioning, 1.0)
    table = {"gain": coefficients.velocity, "std": coefficients.std, "dt": coefficients.dt}
    advantage = torch.tensor([1.0, -1.0, 0.5, -0.5], device=kind)
    factors = {name: values[steps].to(kind) for name, values in table.items()}
    out = GRPOGuard(1e-2)(velocity, old, drawn, advantage=advantage, **factors)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(out.loss, parameters)
    return out.log_ratio.cpu(), torch.cat([g.flatten().cpu() for g in gradients])


def _round(bench: Bench) -> None:
    """One round of the tests' tiny run, two inner epochs of plain gradient descent, on the device and on the CPU."""
    use_the_tests_helpers()
    from runs import newest
    from tiny_folders import make_sd3

    model = make_sd3(bench.folder / "model")
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 10.0}}  # Adam amplifies rounding where a gradient is 0
    settings = {"trainer__max_epochs": 1, "model__optimizer": sgd, "data__val": None, "trainer__callbacks": []}
    states = {}
    for place in ("device", "cpu"):
        accelerator = {} if place == "device" else {"trainer__accelerator": "cpu"}
        path = tiny_run(bench, place, model, **settings, **accelerator)
        done(bench, f"round on the {place}", lambda path=path: command(["fit", "--config", path]))
        states[place] = torch.load(newest(path.parent), weights_only=True, map_location="cpu")["state_dict"]
    bench.row("a tiny round against the CPU's", _apart(states), "relative", "distance over the distance moved")


def _apart(states: dict[str, dict[str, Tensor]]) -> float:
    """Distance between two runs' weights, over the distance that lora_B, which starts at 0, has moved."""
    ours, theirs = states["device"], states["cpu"]
    moved = sum(float(v.double().square().sum()) for k, v in theirs.items() if "lora_B" in k)
    if not moved:
        raise NotMeasuredError("the round on the CPU moved nothing")
    apart = sum(float((ours[k].double() - v.double()).square().sum()) for k, v in theirs.items() if "lora_B" in k)
    start = max(float((ours[k] - v).abs().max()) for k, v in theirs.items() if "lora_A" in k)
    if start > 0.1:
        raise NotMeasuredError(f"the LoRA started elsewhere on the device: lora_A differs by {start:.2g}")
    return float((apart / moved) ** 0.5)


def _names() -> tuple[str, ...]:
    what = [f"{name}, float32 against the CPU's float64" for name in ("log ratio", "gradient")]
    return ("a tiny round against the CPU's", *(f"{name}, {f}" for f in ("sd35", "flux") for name in what))


STAGES = (Stage("exact", "float32 on the device against the CPU", run, 60, _names(), alone=False),)
