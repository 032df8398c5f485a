import math

import pytest
import torch
from torch import Tensor

from guardlit.kl import kl_divergence
from guardlit.objective import (
    PRESETS,
    FlowGRPO,
    GRPOGuard,
    GuardReweight,
    MeanRevised,
    Objective,
    RatioNorm,
    TempFlowGRPO,
)
from guardlit.sde import CPS, DanceSDE, FlowSDE, flow_match_sigmas

SHAPE = (16, 64, 64)  # SD3.5-M's latent at 512 px
COEFFICIENTS = FlowSDE(0.7).coefficients(flow_match_sigmas(10))

# Table 2: how log r_hat is scaled, whether the bias stays, and the weight of a step, written out again
ROWS = {
    FlowGRPO: ("1/s", True, lambda s, dt: 1.0),
    TempFlowGRPO: ("1/s", True, lambda s, dt: s),
    GuardReweight: ("1/s", True, lambda s, dt: 1 / dt),
    MeanRevised: ("1/s", False, lambda s, dt: 1.0),
    RatioNorm: ("1", False, lambda s, dt: 1.0),
    GRPOGuard: ("1", False, lambda s, dt: 1 / dt),
}


def _batch(steps: Tensor, size: float, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> dict[str, Tensor]:
    """A micro-batch at the given steps whose |r_hat - 1| is about `size` (for GRPO-Guard's ratio)."""
    generator = torch.Generator().manual_seed(seed)
    rows, elements = len(steps), math.prod(shape)
    noise = torch.randn(rows, *shape, generator=generator)
    old = torch.randn(rows, *shape, generator=generator)
    gain = COEFFICIENTS.velocity[steps]
    # mean(dv noise) of independent normals spreads as |dv| / sqrt(D)
    scale = size * math.sqrt(elements) / gain.abs()
    delta = torch.randn(rows, *shape, generator=generator) * scale.float().view(-1, *[1] * len(shape))
    return dict(
        velocity=old + delta,
        old_velocity=old,
        noise=noise,
        advantage=torch.randn(rows, generator=generator),
        gain=gain,
        std=COEFFICIENTS.std[steps],
        dt=COEFFICIENTS.dt[steps],
    )


def _oracle(preset: type[Objective], clip: float, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log ratio, clip side, loss and velocity gradient, float64, row by row, straight from Table 2 and eq. (5)."""
    scaling, biased, weight = ROWS[preset]
    log_ratios, sides, losses, gradients = [], [], [], []
    rows = len(batch["advantage"])
    for i in range(rows):
        v_old, noise = batch["old_velocity"][i].double(), batch["noise"][i].double()
        v = batch["velocity"][i].double().clone().requires_grad_()
        g, s, dt = (float(batch[k][i]) for k in ("gain", "std", "dt"))
        # the latents' means under both policies, as eq. (7) has them; a x cancels
        drift = g * v_old - g * v
        log_r = -drift.square().mean() / (2 * s**2) - (drift * noise).mean() / s
        log_ratio = log_r if biased else log_r + drift.square().mean() / (2 * s**2)
        log_ratio = log_ratio if scaling == "1/s" else log_ratio * s
        ratio, advantage = log_ratio.exp(), float(batch["advantage"][i])
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
        loss = -weight(s, dt) * surrogate / rows
        loss.backward()
        log_ratios.append(log_ratio.detach())
        sides.append((ratio > 1 + clip).int() - (ratio < 1 - clip).int())
        losses.append(loss.detach())
        gradients.append(v.grad)
    return torch.stack(log_ratios), torch.stack(sides), torch.stack(losses).sum(), torch.stack(gradients)


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("preset", PRESETS)
def test_float32_equals_a_float64_oracle_at_sd35_shape(preset: type[Objective], size: float):
    steps = torch.arange(9).repeat(2)
    batch = _batch(steps, size, seed=1)
    # a clip range amid the ratios, so that both sides of both bounds occur
    reference, *_ = _oracle(preset, 0.5, batch)
    clip = float(reference.abs().median())
    log_ratio, side, loss, gradient = _oracle(preset, clip, batch)
    velocity = batch["velocity"].clone().requires_grad_()
    out = preset(clip_range=clip)(**{**batch, "velocity": velocity})
    out.loss.backward()
    assert float(((out.log_ratio.double() - log_ratio) / log_ratio).abs().max()) <= 1e-5
    assert torch.equal(out.clipped, side != 0)
    assert 0 < int(out.clipped.sum()) < len(steps)
    torch.testing.assert_close(out.loss.double(), loss, rtol=1e-6, atol=0)
    error = (velocity.grad.double() - gradient).flatten(1).norm(dim=1)
    assert bool((error <= 1e-5 * gradient.flatten(1).norm(dim=1)).all())
    assert out.loss.dtype == out.log_ratio.dtype == torch.float32


@pytest.mark.parametrize("preset", PRESETS)
def test_no_clip_decision_is_wrong_at_the_published_ranges(preset: type[Objective]):
    steps = torch.arange(9).repeat(8)
    for size, clip in [(1e-6, 2e-6), (3e-6, 4e-6), (1e-5, 2e-6)]:
        batch = _batch(steps, size, seed=2)
        log_ratio, *_ = _oracle(preset, clip, batch)
        expected = (log_ratio > math.log1p(clip)) | (log_ratio < math.log1p(-clip))
        assert torch.equal(preset(clip_range=clip)(**batch).clipped, expected)


def _gradient_scales(objective: Objective, coefficients) -> Tensor:
    """Autograd's |d loss / d v| per trained step, on-policy, with the same noise everywhere."""
    steps = torch.arange(9)
    noise = torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).expand(
        9, -1, -1, -1
    )
    velocity = torch.zeros(9, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    out = objective(
        velocity=velocity,
        old_velocity=torch.zeros_like(velocity),
        noise=noise,
        advantage=torch.ones(9, dtype=torch.float64),
        gain=coefficients.velocity[steps],
        std=coefficients.std[steps],
        dt=coefficients.dt[steps],
    )
    out.loss.backward()
    return velocity.grad.flatten(1).norm(dim=1)


@pytest.mark.parametrize("preset", PRESETS)
def test_autograd_has_table_2s_gradient_scale(preset: type[Objective]):
    c = COEFFICIENTS
    beta = -c.velocity / c.dt
    expected = {
        FlowGRPO: -c.velocity / c.std,
        TempFlowGRPO: -c.velocity,
        GuardReweight: beta / c.std,
        MeanRevised: -c.velocity / c.std,
        RatioNorm: beta * c.dt,
        GRPOGuard: beta,
    }[preset][:9]
    measured = _gradient_scales(preset(), c)
    torch.testing.assert_close(measured / measured[1], expected / expected[1], rtol=1e-9, atol=0)
    predicted = preset().gradient_scale(c.velocity, c.std, c.dt)[:9]
    torch.testing.assert_close(predicted, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sde", [FlowSDE(0.7), DanceSDE(0.3), CPS(0.8)])
def test_the_exact_gain_weight_is_flat_for_every_sampler(sde):
    scales = _gradient_scales(Objective("ratio_norm", "inverse_gain"), sde.coefficients(flow_match_sigmas(10)))
    torch.testing.assert_close(scales, scales[:1].expand(9), rtol=1e-9, atol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_mixed_timesteps_equal_the_same_transitions_one_by_one(preset: type[Objective]):
    batch = _batch(torch.tensor([8, 0, 3, 3, 5]), 1e-5, shape=(4, 8, 8))
    objective = preset(clip_range=1e-5)
    full = objective(**batch)
    single = [objective(**{k: v[i : i + 1] for k, v in batch.items()}) for i in range(5)]
    torch.testing.assert_close(full.log_ratio, torch.cat([o.log_ratio for o in single]), rtol=1e-6, atol=1e-12)
    assert torch.equal(full.clipped, torch.cat([o.clipped for o in single]))
    torch.testing.assert_close(full.loss, torch.stack([o.loss for o in single]).mean(), rtol=1e-6, atol=0)


def test_presets_reduce_to_each_other():
    batch = _batch(torch.arange(9), 1e-5, shape=(4, 8, 8))

    def value(objective: Objective) -> Tensor:
        return objective(**batch).loss

    clip = 1e-5
    assert torch.equal(value(GRPOGuard(clip, ratio_norm=False, reweight=False)), value(FlowGRPO(clip)))
    assert torch.equal(value(GRPOGuard(clip, reweight=False)), value(RatioNorm(clip)))
    assert torch.equal(value(GRPOGuard(clip, ratio_norm=False)), value(GuardReweight(clip)))
    assert not torch.equal(value(GRPOGuard(clip)), value(RatioNorm(clip)))
    one_step = {**batch, "std": torch.ones(9), "dt": torch.ones(9)}
    assert torch.equal(MeanRevised(clip)(**one_step).loss, GRPOGuard(clip)(**one_step).loss)
    assert torch.equal(TempFlowGRPO(clip)(**one_step).loss, FlowGRPO(clip)(**one_step).loss)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_ratio_is_exactly_1_on_policy(preset: type[Objective]):
    batch = _batch(torch.arange(9), 0.0, shape=(4, 8, 8))
    out = preset()(**batch)
    assert not out.log_ratio.any()
    assert not out.clipped.any()
    weight = preset().step_weight(batch["gain"], batch["std"], batch["dt"])
    torch.testing.assert_close(out.loss.double(), -(weight * batch["advantage"]).mean(), rtol=1e-6, atol=0)


def test_the_clip_stops_the_gradient_on_its_own_side_only():
    """Above the range a positive advantage gets no gradient, a negative one still does; below, the reverse."""
    for shift, advantage, moves in [(+1, 1.0, False), (+1, -1.0, True), (-1, 1.0, True), (-1, -1.0, False)]:
        noise = torch.ones(1, 1, 2, 2)
        velocity = torch.full((1, 1, 2, 2), -float(shift), requires_grad=True)
        one = torch.ones(1, dtype=torch.float64)
        out = RatioNorm(0.1)(velocity, torch.zeros(1, 1, 2, 2), noise, advantage * one, -one, one, one)
        out.loss.backward()
        assert bool(out.clipped)
        assert float(out.log_ratio) == shift
        assert bool(velocity.grad.any()) == moves


def test_asymmetric_and_sum_unit_clip_ranges():
    batch = _batch(torch.arange(9).repeat(20), 2e-6)
    log_ratio = RatioNorm()(**batch).log_ratio.double()
    out = RatioNorm(clip_range=(1e-6, 3e-6))(**batch)
    assert torch.equal(out.clipped, (log_ratio < math.log1p(-1e-6)) | (log_ratio > math.log1p(3e-6)))
    elements = math.prod(SHAPE)
    assert 4e-6 * elements == pytest.approx(0.262, abs=1e-3)
    by_sum = RatioNorm(clip_range=4e-6 * elements, clip_unit="sum")
    assert torch.equal(by_sum(**batch).clipped, RatioNorm(clip_range=4e-6)(**batch).clipped)
    assert RatioNorm(clip_range=2.0, clip_unit="sum").log_bounds(1)[0] == -math.inf


def test_sample_weights_scale_their_rows():
    batch = _batch(torch.arange(4), 1e-5, shape=(4, 8, 8))
    weights = torch.tensor([2.0, 0.0, 2.0, 0.0])
    full = GRPOGuard()(**batch, sample_weight=weights).loss
    kept = GRPOGuard()(**{k: v[[0, 2]] for k, v in batch.items()}).loss
    torch.testing.assert_close(full, kept, rtol=1e-6, atol=0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_velocities_are_widened_first(half: torch.dtype):
    batch = _batch(torch.arange(9), 1e-3, shape=(4, 8, 8))
    batch["velocity"], batch["old_velocity"] = batch["velocity"].to(half), batch["old_velocity"].to(half)
    out = GRPOGuard()(**batch)
    wide = GRPOGuard()(**{k: v.float() if v.dtype == half else v for k, v in batch.items()})
    assert out.log_ratio.dtype == torch.float32
    assert torch.equal(out.log_ratio, wide.log_ratio)


@pytest.mark.parametrize("clip", [0, -1e-6, (1e-6, 0.0), 1.5, float("inf")])
def test_a_clip_range_that_cannot_be_is_refused(clip):
    with pytest.raises(ValueError, match="clip_range"):
        GRPOGuard(clip)


def test_shapes_that_do_not_fit_are_refused():
    batch = _batch(torch.arange(3), 1e-5, shape=(4, 8, 8))
    with pytest.raises(ValueError, match=r"dt needs shape \(3,\), found \(1,\)"):
        GRPOGuard()(**{**batch, "dt": torch.ones(1)})
    with pytest.raises(ValueError, match="velocities need one shape"):
        GRPOGuard()(**{**batch, "old_velocity": torch.zeros(3, 4, 8, 4)})


def test_kl_kinds_against_the_gaussian_divergence():
    batch = _batch(torch.arange(9), 1e-4, shape=(4, 8, 8))
    arguments = (batch["velocity"], batch["old_velocity"], batch["gain"], batch["std"], batch["dt"])
    c, shape = COEFFICIENTS, (-1, 1, 1, 1)
    means = [c.velocity[:9].view(shape) * batch[k].double() for k in ("velocity", "old_velocity")]
    std = c.std[:9].view(shape)
    gaussian = (
        torch.distributions.kl_divergence(*(torch.distributions.Normal(m, std) for m in means)).flatten(1).mean(1)
    )
    torch.testing.assert_close(kl_divergence("exact", *arguments).double(), gaussian, rtol=1e-5, atol=0)
    published = (means[0] - means[1]).square().flatten(1).mean(1) / (2 * c.std[:9].square() / c.dt[:9])
    torch.testing.assert_close(kl_divergence("flow_grpo", *arguments).double(), published, rtol=1e-5, atol=0)
    velocity = (batch["velocity"] - batch["old_velocity"]).double().square().flatten(1).mean(1)
    torch.testing.assert_close(kl_divergence("velocity", *arguments).double(), velocity, rtol=1e-5, atol=0)
