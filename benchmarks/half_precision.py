"""Half-precision weights without autocast against float32 weights: `python benchmarks/half_precision.py [--pairs 8]`.

The model of `benchmarks/merging.py`, its adapter moved. It prints relative errors of the velocity and of the
adapter's gradient, then the CPU time of a forward and backward pass, and of a rollout's forward pass, in alternating
pairs of calls. The loss is a mean over the latents, so that float16 shows its errors without a loss scale.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.merging import PROMPTS, ROWS, load, make, moved
from guardlit.policies import SD3Policy

KINDS = {
    "fp32": ("fp32", False),
    "fp32 weights, bf16 autocast": ("fp32", True),
    "bf16 weights": ("bf16", False),
    "fp16 weights, no loss scale": ("fp16", False),
}
"""Weights, and whether autocast is on around the policy."""


def forward(policy: SD3Policy, autocast: bool) -> tuple[Tensor, float]:
    """The velocity at fixed states, and its CPU time."""
    x = torch.randn(ROWS, *policy.latent_shape, generator=torch.Generator().manual_seed(5))
    conditioning, begun = policy.conditioning(PROMPTS), time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        velocity = policy.velocity(x, torch.linspace(0.9, 0.2, ROWS), conditioning, 1.0)
    return velocity, time.process_time() - begun


def train(policy: SD3Policy, autocast: bool) -> tuple[Tensor, Tensor, float]:
    """Velocity, the adapter's gradient as one vector, and the CPU time of both passes."""
    policy.zero_grad()
    velocity, seconds = forward(policy, autocast)
    begun = time.process_time()
    (velocity * torch.randn(velocity.shape, generator=torch.Generator().manual_seed(6))).mean().backward()
    seconds += time.process_time() - begun
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return velocity.detach(), gradient, seconds


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as name:
        folder = make(Path(name) / "model")
        policies = {dtype: load(folder, dtype) for dtype in ("fp32", "bf16", "fp16")}
    for policy in policies.values():
        moved(policy, 1e-2)
    found = {kind: train(policies[dtype], autocast) for kind, (dtype, autocast) in KINDS.items()}
    exact = found.pop("fp32")
    for kind, (velocity, gradient, _) in found.items():
        errors = [float((x - y).norm() / y.norm()) for x, y in ((velocity, exact[0]), (gradient, exact[1]))]
        print(f"{kind}: velocity off by {errors[0]:.2%}, gradient by {errors[1]:.2%}", flush=True)
    training, rollout = [], []
    for _ in range(pairs):
        training.append(train(policies["fp32"], True)[2] / train(policies["bf16"], False)[2])
        with torch.no_grad():
            rollout.append(forward(policies["fp32"], True)[1] / forward(policies["bf16"], False)[1])
    for what, ratios in (("a micro-batch", training), ("a rollout's call", rollout)):
        print(
            f"{what} of fp32 weights under autocast takes {float(torch.tensor(ratios).median()):.2f} times the CPU time"
        )


if __name__ == "__main__":
    main()
