import itertools
import math

import pytest
import torch

from guardlit.sde import CPS, ODE, SDE, DanceSDE, FlowSDE, flow_match_sigmas

# paper/README's table for SD3.5-M: 10 steps, shift 3, noise level 0.7
TABLE = {
    "t": [1.000, 0.960, 0.913, 0.858, 0.790, 0.707, 0.602, 0.465, 0.278, 0.009],
    "s": [0.700, 0.743, 0.536, 0.446, 0.392, 0.353, 0.319, 0.282, 0.225, 0.006],
    "-g": [0.040, 0.058, 0.069, 0.084, 0.103, 0.131, 0.171, 0.233, 0.335, 0.011],
}


def test_the_schedule_is_that_of_diffusers():
    from diffusers import FlowMatchEulerDiscreteScheduler

    for steps, shift in [(10, 3.0), (28, 3.0), (40, 3.0), (7, 1.0), (1, 3.0)]:
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
        scheduler.set_timesteps(steps)
        torch.testing.assert_close(flow_match_sigmas(steps, shift).float(), scheduler.sigmas, rtol=0, atol=5e-7)


def test_flow_sde_prints_the_published_numbers():
    sigmas = flow_match_sigmas(10)
    c = FlowSDE(0.7).coefficients(sigmas)
    for name, values in {"t": sigmas[:-1], "s": c.std, "-g": -c.velocity}.items():
        assert [round(float(v), 3) for v in values] == TABLE[name]
    beta = -c.velocity / c.dt
    assert float(beta[0]) == 1
    torch.testing.assert_close(beta[1:], torch.full((9,), 1 + 0.7**2 / 2, dtype=torch.float64), rtol=1e-12, atol=0)
    spread = (-c.velocity / c.std)[:9]
    assert 25 < float(spread.max() / spread.min()) < 27


def _flow_diffusion(t: float, first_below_one: float, eta: float) -> float:
    return eta * math.sqrt(t / (1 - (first_below_one if t == 1 else t)))


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.2])
@pytest.mark.parametrize("kind", ["flow", "dance"])
def test_langevin_steps_equal_the_score_form_in_a_python_loop(kind: str, eta: float):
    """Mean = x + [v - (sigma_t^2 / 2) score] dt with score = -(x + (1 - t) v) / t, one scalar at a time."""
    sigmas = flow_match_sigmas(10).tolist()
    c = (FlowSDE(eta) if kind == "flow" else DanceSDE(eta)).coefficients(torch.tensor(sigmas, dtype=torch.float64))
    for i, (t, t_next) in enumerate(itertools.pairwise(sigmas)):
        diffusion = eta if kind == "dance" else _flow_diffusion(t, sigmas[1], eta)
        x, v, noise, dt = 0.3, -1.7, 0.9, t_next - t
        score = -(x + (1 - t) * v) / t
        expected = x + (v - diffusion**2 / 2 * score) * dt + diffusion * math.sqrt(-dt) * noise
        assert float(c.sample[i] * x + c.velocity[i] * v + c.std[i] * noise) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("eta", [0.2, 0.8, 1.0])
def test_cps_keeps_the_signal_and_the_noise_level_of_the_next_time(eta: float):
    sigmas = flow_match_sigmas(10)
    c = CPS(eta).coefficients(sigmas)
    t, t_next = sigmas[:-1], sigmas[1:]
    # with x = (1 - t) x0 + t x1 and v = x1 - x0 the step is a combination of x0, x1 and fresh noise
    of_x0 = c.sample * (1 - t) - c.velocity
    of_x1 = c.sample * t + c.velocity
    torch.testing.assert_close(of_x0, 1 - t_next, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close((of_x1.square() + c.std.square()).sqrt(), t_next, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(c.std, t_next * math.sin(eta * math.pi / 2), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("eta", [0.2, 0.8, 1.0])
def test_cps_equals_its_score_form_in_a_python_loop(eta: float):
    """By Tweedie, x_0 = (x + t^2 score) / (1 - t) and x_1 = -t score, with score = -(x + (1 - t) v) / t."""
    sigmas = flow_match_sigmas(10).tolist()
    c = CPS(eta).coefficients(torch.tensor(sigmas, dtype=torch.float64))
    for i, (t, t_next) in list(enumerate(itertools.pairwise(sigmas)))[1:]:  # at t = 1 there is no signal left to divide
        x, v, noise = 0.3, -1.7, 0.9
        score = -(x + (1 - t) * v) / t
        clean, dirty = (x + t**2 * score) / (1 - t), -t * score
        std = t_next * math.sin(eta * math.pi / 2)
        expected = (1 - t_next) * clean + math.sqrt(t_next**2 - std**2) * dirty + std * noise
        found = float(c.sample[i] * x + c.velocity[i] * v + c.std[i] * noise)
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("sde", [FlowSDE(0), DanceSDE(0), CPS(0), ODE()])
def test_without_noise_every_sampler_is_the_euler_ode(sde: SDE):
    sigmas = flow_match_sigmas(10)
    c = sde.coefficients(sigmas)
    torch.testing.assert_close(c.sample, torch.ones(10, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(c.velocity, sigmas.diff(), rtol=1e-12, atol=1e-12)
    assert not c.std.any()
    torch.testing.assert_close(c.dt, -sigmas.diff(), rtol=0, atol=0)


@pytest.mark.parametrize("sde", [FlowSDE(), DanceSDE(), CPS(), ODE()])
def test_coefficients_are_float64_whatever_the_schedule_is(sde: SDE):
    c = sde.coefficients(flow_match_sigmas(10).float())
    assert {x.dtype for x in (c.sample, c.velocity, c.std, c.dt)} == {torch.float64}
    assert len(c) == 10
    assert all(bool(torch.isfinite(x).all()) for x in (c.sample, c.velocity, c.std, c.dt))


@pytest.mark.parametrize(
    "sigmas", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.2, 0.0], [1.0, -0.1], [[1.0, 0.0]], [float("nan"), 0.0]]
)
def test_a_schedule_that_does_not_fall_is_refused(sigmas: list[float]):
    with pytest.raises(ValueError, match="sigmas"):
        FlowSDE().coefficients(torch.tensor(sigmas))


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="noise_level=-1"):
        FlowSDE(-1)
    with pytest.raises(ValueError, match=r"noise_level=1.5 must lie in \[0, 1\]"):
        CPS(1.5)
    with pytest.raises(ValueError, match="num_steps=0"):
        flow_match_sigmas(0)
