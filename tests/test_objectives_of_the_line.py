"""Flow-DPPO, Flash-GRPO, PCPO and the velocity form against float64 oracles written from the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from guardlit.objective import OBJECTIVES, PCPO, FlashGRPO, FlowDPPO, FlowGRPO, GRPOGuard, RatioNorm, VelocityNorm
from guardlit.sde import CPS, DanceSDE, FlowSDE, flow_match_sigmas
from guardlit.surrogate import Objective

SHAPE = (16, 64, 64)  # SD3.5-M's latent at 512 px
SIGMAS = flow_match_sigmas(10)
C = FlowSDE(0.7).coefficients(SIGMAS)
STEPS = torch.tensor([0, 8, 3, 3, 5, 1, 7, 2, 4, 6, 0, 8])
TRAINED = range(9)


def trained(coefficients) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(values[list(TRAINED)] for values in (coefficients.velocity, coefficients.std, coefficients.dt))


def batch(size: float, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> dict[str, Tensor]:
    """Mixed timesteps and both signs of the advantage; velocities differ so that |log r| is about `size` everywhere."""
    generator = torch.Generator().manual_seed(seed)
    rows, elements = len(STEPS), math.prod(shape)
    old = torch.randn(rows, *shape, generator=generator)
    scale = size * math.sqrt(elements) * C.std[STEPS] / C.velocity[STEPS].abs()
    delta = torch.randn(rows, *shape, generator=generator) * scale.float().view(-1, *[1] * len(shape))
    return {
        "velocity": old + delta,
        "old_velocity": old,
        "noise": torch.randn(rows, *shape, generator=generator),
        "advantage": torch.randn(rows, generator=generator),
        "gain": C.velocity[STEPS],
        "std": C.std[STEPS],
        "dt": C.dt[STEPS],
    }


def log_densities(b: dict[str, Tensor], row: int, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """log r and the KL of a step, means over elements, from the Gaussians' densities in float64."""
    g, s = float(b["gain"][row]), float(b["std"][row])
    drawn = g * b["old_velocity"][row].double() + s * b["noise"][row].double()  # x_next - a x
    new, old = g * velocity, g * b["old_velocity"][row].double()
    log_r = ((drawn - old).square() - (drawn - new).square()).mean() / (2 * s**2)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(old, s), normal(new, s)).mean()
    return log_r, kl


def native_scale(step: int) -> float:
    """The paper's coefficient of log r's gradient: sqrt(dt) / std + std sqrt(dt) (1 - sigma) / (2 sigma)."""
    sigma, following = float(SIGMAS[step]), float(SIGMAS[step + 1])
    held = float(SIGMAS[1]) if sigma == 1 else sigma  # Flow-GRPO's guard against a division by zero at sigma 1
    std = 0.7 * math.sqrt(sigma / (1 - held))
    root = math.sqrt(sigma - following)
    return root / std + std * root * (1 - sigma) / (2 * sigma)


def oracle(name: str, b: dict[str, Tensor], limit: float) -> tuple[Tensor, Tensor, list[bool]]:
    """Mean loss, gradient (B, C, H, W), and which transitions are out of bounds."""
    losses, gradients, outside = [], [], []
    flash = {t: 1 / native_scale(t) for t in TRAINED}
    share = {t: (float(SIGMAS[t]) - float(SIGMAS[t + 1])) / native_scale(t) for t in TRAINED}
    for row, step in enumerate(STEPS.tolist()):
        v = b["velocity"][row].double().clone().requires_grad_()
        advantage = float(b["advantage"][row])
        log_r, kl = log_densities(b, row, v)
        ratio = log_r.exp()
        if name == "FlowDPPO":
            away = (advantage > 0 and ratio > 1) or (advantage < 0 and ratio < 1)
            outside.append(bool(kl > limit))
            loss = -advantage * ratio * float(not (away and outside[-1]))
        elif name == "FlashGRPO":
            clipped = ratio.clamp(1 - limit, 1 + limit)
            outside.append(bool(clipped != ratio))
            weight = flash[step] / (sum(flash.values()) / len(flash))
            loss = -weight * torch.minimum(advantage * ratio, advantage * clipped)
        elif name == "PCPO":
            outside.append(bool(log_r.abs() > limit))
            weight = share[step] / (sum(share.values()) / len(share))
            loss = weight * torch.relu(limit * abs(advantage) - advantage * log_r)
        else:
            delta = v - b["old_velocity"][row].double()
            log_r = -(delta * b["noise"][row].double()).mean()  # g is negative: denoising lowers sigma
            ratio = log_r.exp()
            clipped = ratio.clamp(1 - limit, 1 + limit)
            outside.append(bool(clipped != ratio))
            loss = -torch.minimum(advantage * ratio, advantage * clipped)
        if loss.requires_grad:
            loss.backward()
        gradients.append(torch.zeros_like(v) if v.grad is None else v.grad)
        losses.append(loss.detach())
    return torch.stack(losses).mean(), torch.stack(gradients) / len(STEPS), outside


LINE = {FlowDPPO: 0.5, FlashGRPO: 1.0, PCPO: 1.0, VelocityNorm: 1.0}


def median_size(preset: type[Objective], b: dict[str, Tensor]) -> float:
    """A limit amid what is bounded, so that both kinds of rows occur."""
    return float(preset(clip_range=None)(**b).bounded.double().median())


@pytest.mark.parametrize("size", [1e-6, 1e-4])
@pytest.mark.parametrize("preset", LINE)
def test_loss_gradient_and_bound_equal_the_papers_formula(preset: type[Objective], size: float):
    b = batch(size, seed=1)
    limit = median_size(preset, b)
    loss, gradient, outside = oracle(preset.__name__, b, limit)
    objective = preset(clip_range=limit)
    objective.bind(*trained(C))
    velocity = b["velocity"].clone().requires_grad_()
    out = objective(**{**b, "velocity": velocity})
    out.loss.backward()
    assert out.clipped.tolist() == outside
    assert 0 < sum(outside) < len(outside)
    error = (velocity.grad.double() - gradient).flatten(1).norm(dim=1)
    assert bool((error <= 1e-5 * gradient.flatten(1).norm(dim=1)).all())
    stopped = gradient.flatten(1).norm(dim=1) == 0
    assert 0 < int(stopped.sum()) < sum(outside)  # some of those out of bounds move back, and keep their gradient
    weight = objective.step_weight(b["gain"], b["std"], b["dt"])
    constant = {
        "FlowDPPO": 0.0,
        "PCPO": float((weight * (b["advantage"].double() + limit * b["advantage"].double().abs())).mean()),
    }.get(preset.__name__, 0.0)
    if preset is FlowDPPO:  # the paper's masked rows add 0, ours a constant
        constant = float(-(b["advantage"].double() * out.log_ratio.double().exp())[stopped].sum() / len(STEPS))
        torch.testing.assert_close(out.loss.double() - constant, loss, rtol=1e-6, atol=1e-12)
    else:
        torch.testing.assert_close(out.loss.double() + constant, loss, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("preset", OBJECTIVES)
def test_a_bound_at_infinity_is_the_unbounded_surrogate(preset: type[Objective]):
    b = batch(1e-3, shape=(4, 8, 8))
    free, wide = preset(clip_range=None), preset(clip_range=1e30, clip_unit="sum")
    for objective in (free, wide):
        objective.bind(*trained(C))
        assert not objective(**b).clipped.any()
    assert torch.equal(free(**b).loss, wide(**b).loss)
    weight = free.step_weight(b["gain"], b["std"], b["dt"])
    small = free(**b).log_ratio.double()
    small = small if free.bound.of_log else torch.expm1(small)
    torch.testing.assert_close(
        free(**b).loss.double(), -(weight * (1 + small) * b["advantage"]).mean(), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("preset", OBJECTIVES)
def test_on_policy_the_ratio_is_exactly_1_and_the_kl_exactly_0(preset: type[Objective]):
    out = preset(clip_range=1e-9)(**{**(b := batch(1e-3, shape=(4, 8, 8))), "velocity": b["old_velocity"]})
    assert not out.log_ratio.any()
    assert not out.bounded.any()
    assert not out.clipped.any()


@pytest.mark.parametrize("preset", [FlashGRPO, PCPO])
@pytest.mark.parametrize("sde", [FlowSDE(0.7), DanceSDE(0.3), CPS(0.8)])
def test_weights_are_1_on_average_and_make_the_gradient_what_the_paper_says(preset: type[Objective], sde):
    c = sde.coefficients(SIGMAS)
    objective = preset()
    objective.bind(*trained(c))
    assert float(objective.step_weight(*trained(c)).mean()) == pytest.approx(1, rel=1e-12)
    scale = objective.gradient_scale(*trained(c))
    share = torch.ones_like(scale) if preset is FlashGRPO else c.dt[: len(scale)]  # flat, or as large as the step
    torch.testing.assert_close(scale / scale[0], share / share[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("sde", [FlowSDE(0.7), DanceSDE(0.3), CPS(0.8)])
def test_the_velocity_form_has_a_flat_gradient_and_ratio_norms_direction(sde):
    c = sde.coefficients(SIGMAS)
    b = {k: v[:9] for k, v in batch(1e-4, shape=(4, 8, 8)).items()}
    b |= dict(zip(("gain", "std", "dt"), trained(c), strict=True))
    assert VelocityNorm(None).gradient_scale(*trained(c)).tolist() == [1.0] * 9
    velocity, ratio_norm = VelocityNorm(None)(**b).log_ratio, RatioNorm(None)(**b).log_ratio
    torch.testing.assert_close(velocity.double(), ratio_norm.double() / b["gain"].abs(), rtol=1e-6, atol=0)
    norms = []
    for objective in (VelocityNorm(None), Objective("ratio_norm", "inverse_gain", None)):
        leaf = b["old_velocity"].clone().requires_grad_()
        objective(**{**b, "velocity": leaf}).loss.backward()
        norms.append(leaf.grad)
    torch.testing.assert_close(*norms, rtol=1e-6, atol=0)  # on-policy; off-policy they differ in the clip


@pytest.mark.parametrize("unit", ["mean", "sum"])
@pytest.mark.parametrize("preset", [GRPOGuard, FlowDPPO, PCPO, VelocityNorm])
def test_a_range_per_step_is_that_range_at_its_step(preset: type[Objective], unit: str):
    b = batch(1e-4, shape=(4, 8, 8))
    elements, size = 256, median_size(preset, b)
    limits = (torch.linspace(0.5, 2, 10).double() * size).tolist()
    per_step = preset(clip_range="auto_per_step", clip_unit=unit)
    assert (per_step.auto, per_step.bound.per_step, per_step.clip_range) == (True, True, None)
    assert not per_step(**b).clipped.any()
    per_step.bound.calibrate_steps(limits)
    out = per_step(**b, step=STEPS)
    losses, clipped = [], []
    for row, step in enumerate(STEPS.tolist()):
        one = preset(clip_range="auto", clip_unit=unit)
        one.calibrate(limits[step], elements)
        alone = one(**{k: v[row : row + 1] for k, v in b.items()})
        losses.append(alone.loss)
        clipped.append(bool(alone.clipped))
    assert out.clipped.tolist() == clipped
    assert 0 < sum(clipped) < len(clipped)
    torch.testing.assert_close(out.loss, torch.stack(losses).mean(), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="pass step"):
        per_step(**b)


def test_a_step_without_a_range_is_not_clipped():
    objective, b = GRPOGuard("auto_per_step"), batch(1e-2, shape=(4, 8, 8))
    objective.bound.calibrate_steps([1e-12 if step == 3 else math.inf for step in range(10)])
    assert objective(**b, step=STEPS).clipped.tolist() == [step == 3 for step in STEPS.tolist()]
    assert objective.bound.limit(256) == 1e-12
    with pytest.raises(ValueError, match="must be positive"):
        objective.bound.calibrate_steps([0.0] * 10)
    objective.calibrate(1e-3, 256)  # one range for all again
    assert objective.bound.limit(256) == pytest.approx(1e-3)


def test_units_of_the_kl_bound():
    b = batch(1e-4, shape=(4, 8, 8))
    limit = median_size(FlowDPPO, b)
    assert torch.equal(
        FlowDPPO(limit)(**b).clipped, FlowDPPO(limit * 256, clip_unit="sum")(**b).clipped
    )  # 256 latent elements
    assert FlowDPPO(1e-5).bound.limit(65536) * 65536 == pytest.approx(0.655, abs=1e-3)
    assert FlowDPPO(3.0).bound.limit(64) == 3.0  # a KL may be above 1, unlike 1 - ratio
    with pytest.raises(ValueError, match="a KL has one side"):
        FlowDPPO((1e-5, 2e-5))


def test_flow_dppo_without_a_mask_is_flow_grpo_without_a_clip():
    b = batch(1e-3, shape=(4, 8, 8))
    assert torch.equal(FlowDPPO(None)(**b).loss, FlowGRPO(None)(**b).loss)
