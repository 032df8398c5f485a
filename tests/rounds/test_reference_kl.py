"""The KL from the base on validation trajectories: closed forms of policies that are moved by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS
from quantized import KINDS, loaded, perturb
from small_policy import SmallPolicy
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from velocities import disturb

from guardlit.errors import GuardlitError
from guardlit.policies.base import FlowPolicy
from guardlit.rounds.evaluate import ReferenceKL, draw_fixed
from guardlit.rounds.noise import EVALUATION, NoiseSource
from guardlit.rounds.rollout import sample
from guardlit.rounds.settings import Rollout, Sampling
from guardlit.sde import CPS, ODE, SDE, Coefficients, DanceSDE, FlowSDE

FIVE, ROLLOUT = Sampling(num_inference_steps=5, guidance_scale=1.0), Rollout(num_inference_steps=5, guidance_scale=1.0)


def measured(policy: FlowPolicy, sde: SDE, evaluation: Sampling = FIVE, merge: object = "auto") -> Tensor:
    """(B, S) of the two prompts."""
    kl = ReferenceKL.of(policy, sde, ROLLOUT, evaluation)
    draw_fixed(policy, evaluation, PROMPTS, [0, 1], merge, kl)
    return kl.values()


@pytest.mark.parametrize("sde", [FlowSDE(), DanceSDE(), CPS()], ids=lambda sde: type(sde).__name__)
def test_a_network_of_one_number_by_hand(sde: SDE):
    """v = scale x + text, so dv = (scale - base) x along a trajectory that is written out here in float64."""
    policy = SmallPolicy()
    with torch.no_grad():
        policy.scale.add_(0.25)
    c = sde.coefficients(policy.sigmas(5))
    x = NoiseSource(0, EVALUATION, policy.latent_shape).draw([0, 1], -1).double()
    text = policy.conditioning(PROMPTS)["number"].double().reshape(-1, 1, 1, 1)
    expected = []
    for step in range(4):
        expected.append(c.velocity[step] ** 2 * (0.25 * x).square().sum((1, 2, 3)) / (2 * c.std[step] ** 2))
        x = x - c.dt[step] * (0.75 * x + text)
    found = measured(policy, sde)
    assert (found.dtype, found.shape) == (torch.float64, (2, 4))
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-6, atol=0)


def test_the_policy_is_called_once_a_step_and_the_reference_once_for_each_that_counts():
    policy = SmallPolicy(can_merge=True)
    measured(policy, FlowSDE())
    assert policy.calls == [("merged",), ("merged", "base")] * 4 + [("merged",)]
    policy.calls.clear()
    draw_fixed(policy, FIVE, PROMPTS, [0, 1])
    assert policy.calls == [("merged",)] * 5


@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_constant_added_to_the_output_by_hand(name: str, guidance: float, tiny: Callable[[str], Path]):
    """dv is the constant in every element, whatever the states are and however they are guided."""
    policy = FAMILIES[name].load(tiny(name), lora=None, reference=True)
    evaluation = Sampling(num_inference_steps=5, guidance_scale=guidance)
    assert measured(policy, FlowSDE(), evaluation).tolist() == [[0.0] * 4] * 2
    with torch.no_grad():
        policy.transformer.proj_out.bias.add_(3.0)
    c, elements = FlowSDE().coefficients(policy.sigmas(5)), math.prod(policy.latent_shape)
    expected = (c.velocity[:4] * 3.0 / c.std[:4]) ** 2 / 2 * elements
    torch.testing.assert_close(measured(policy, FlowSDE(), evaluation), expected.expand(2, 4), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("merge", "options", "rtol"),
    [(False, {}, 1e-9), ("auto", {}, 1e-3), (False, {"weights_dtype": "bf16"}, 1e-9)],
    ids=["apart", "merged", "bf16"],
)
def test_an_adapter_by_brute_force(merge: object, options: dict, rtol: float, tiny: Callable[[str], Path]):
    """All states and velocities are kept here, and the Gaussians compared by torch."""
    policy, sde = FAMILIES["sd3"].load(tiny("sd3"), **options), FlowSDE()
    assert measured(policy, sde, merge=merge).tolist() == [[0.0] * 4] * 2
    disturb(policy)
    c, conditioning = sde.coefficients(policy.sigmas(5)), policy.conditioning(PROMPTS)
    noise, steps = NoiseSource(0, EVALUATION, policy.latent_shape), torch.arange(4).expand(2, 4)
    drawn = sample(policy, ODE().coefficients(c.sigmas), conditioning, noise, [0, 1], 1.0, record=steps)
    expected = []
    for step in range(4):
        x, v = drawn.latents[:, step], drawn.velocity[:, step]
        with policy.using("base"):
            base = policy.velocity(x, c.sigmas[step].float().expand(2), conditioning, 1.0)
        means = (c.sample[step] * x.double() + c.velocity[step] * u.double() for u in (v, base))
        ours, theirs = (Normal(mean, c.std[step]) for mean in means)
        expected.append(kl_divergence(ours, theirs).sum((1, 2, 3)))
    assert float(expected[0].min()) > 1e-3
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    torch.testing.assert_close(measured(policy, sde, merge=merge), torch.stack(expected, 1), rtol=rtol, atol=0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.named_parameters())


@pytest.mark.parametrize(
    ("evaluation", "fraction", "steps"), [(5, 0.99, 4), (40, 0.99, 39), (5, 1.0, 5), (40, 0.5, 20), (100, 0.29, 29)]
)
def test_the_steps_are_those_that_the_rollout_trains_or_the_same_fraction(evaluation: int, fraction: float, steps: int):
    rollout, validation = Rollout(5, 1.0, timestep_fraction=fraction), Sampling(evaluation, 1.0)
    kl = ReferenceKL.of(SmallPolicy(), FlowSDE(), rollout, validation)
    draw_fixed(SmallPolicy(), validation, PROMPTS, [0, 1], kl=kl)
    assert kl.values().shape == (2, steps)
    if evaluation == rollout.num_inference_steps:
        assert steps == rollout.available_steps


def test_a_step_without_noise_counts_nothing(monkeypatch: pytest.MonkeyPatch):
    policy = SmallPolicy()
    with torch.no_grad():
        policy.scale.add_(0.25)
    noisy, coefficients = measured(policy, FlowSDE()), FlowSDE.coefficients

    def without_noise_at_step_1(sde: FlowSDE, sigmas: Tensor) -> Coefficients:
        found = coefficients(sde, sigmas)
        found.std[1] = 0
        return found

    monkeypatch.setattr(FlowSDE, "coefficients", without_noise_at_step_1)
    silent = measured(policy, FlowSDE())
    assert silent[:, 1].tolist() == [0, 0]
    assert torch.equal(silent[:, [0, 2, 3]], noisy[:, [0, 2, 3]])


@pytest.mark.parametrize(("sde", "steps"), [(ODE(), 5), (FlowSDE(), 1)])
def test_no_noise_at_all_is_one_line(sde: SDE, steps: int):
    with pytest.raises(GuardlitError, match=rf"^KLFromBase: {type(sde).__name__} has no noise at the first .* raise"):
        ReferenceKL.of(SmallPolicy(), sde, ROLLOUT, Sampling(steps, 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_base_is_measured_as_it_is(kind: str, sd3_folder: Path):
    """The base is the quantized network: the distance of an untrained adapter from it is exactly 0."""
    policy = loaded(sd3_folder, kind, "bf16")
    policy.encode(PROMPTS)
    assert measured(policy, FlowSDE()).tolist() == [[0.0] * 4] * 2
    perturb(policy)
    assert float(measured(policy, FlowSDE()).min()) > 0
