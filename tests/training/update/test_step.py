"""The outputs of a training step, by values."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from guardlit.kl import KL, kl_divergence
from guardlit.objective import GRPOGuard
from guardlit.training.update.step import step_outputs
from guardlit.types import Transition

GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


BATCH = Transition(
    latents=normal(3, 1, 2, 2),
    noise=normal(3, 1, 2, 2),
    old_velocity=None,
    advantage=normal(3),
    sample_weight=torch.tensor([2.0, 0.0, 1.0]),
    sigma=torch.tensor([0.9, 0.5, 0.1]),
    gain=torch.tensor([-0.3, -0.2, -0.1]).double(),
    std=torch.tensor([0.5, 0.4, 0.3]).double(),
    dt=torch.tensor([0.2, 0.1, 0.1]).double(),
    step=torch.tensor([0, 1, 2]),
    sample=torch.tensor([5, 6, 7]),
    conditioning={},
)
OLD, REFERENCE = normal(3, 1, 2, 2), normal(3, 1, 2, 2)
OBJECTIVE = GRPOGuard(0.5)


def test_velocity_gradients_are_those_of_each_row_s_loss():
    velocity = (OLD + 0.01 * normal(3, 1, 2, 2)).requires_grad_()
    outputs = step_outputs(OBJECTIVE, BATCH, velocity, OLD)
    outputs["loss"].backward()
    torch.testing.assert_close(outputs["velocity_grad_norm"], 3 * velocity.grad.flatten(1).norm(dim=1))
    assert outputs["velocity_grad_norm"][1] == 0  # of a masked image
    assert {key for key, value in outputs.items() if value.requires_grad} == {"loss"}
    assert torch.equal(outputs["sample"], BATCH.sample)
    assert torch.equal(outputs["timestep"], BATCH.sigma)


def test_a_penalty_adds_its_weighted_mean():
    velocity = OLD.clone().requires_grad_()
    plain = step_outputs(OBJECTIVE, BATCH, velocity, OLD)
    kl = KL(0.25, "velocity")
    penalized = step_outputs(OBJECTIVE, BATCH, velocity, OLD, kl, REFERENCE)
    steps = {"gain": BATCH.gain, "std": BATCH.std, "dt": BATCH.dt}
    divergence = kl_divergence("velocity", OLD, REFERENCE, **steps)
    torch.testing.assert_close(penalized["kl"], divergence)
    expected = plain["loss"] + 0.25 * (2 * divergence[0] + divergence[2]) / 3
    torch.testing.assert_close(penalized["loss"], expected)
    assert "kl" not in plain
    weighted = step_outputs(
        OBJECTIVE, replace(BATCH, kl_weight=torch.tensor([0.5, 1, 0])), velocity, OLD, kl, REFERENCE
    )
    torch.testing.assert_close(weighted["loss"], plain["loss"] + 0.25 * 0.5 * 2 * divergence[0] / 3)
    assert torch.equal(weighted["kl"], penalized["kl"])  # what is logged is the distance itself
    ones = step_outputs(OBJECTIVE, replace(BATCH, kl_weight=torch.ones(3)), velocity, OLD, kl, REFERENCE)
    assert torch.equal(ones["loss"], penalized["loss"])
    # the gradient that callbacks see is that of the surrogate alone
    assert torch.equal(penalized["velocity_grad_norm"], plain["velocity_grad_norm"])
