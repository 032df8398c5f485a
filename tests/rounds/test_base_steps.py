"""The last denoising steps by the base model: against steps that are written out here, and what stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS
from small_policy import SmallPolicy
from torch import Tensor
from velocities import disturb

from guardlit.errors import GuardlitError
from guardlit.policies import DiffusersPolicy, LoRA
from guardlit.rounds.evaluate import ReferenceKL, draw_fixed
from guardlit.rounds.noise import EVALUATION, NoiseSource
from guardlit.rounds.settings import Rollout, Sampling
from guardlit.sde import FlowSDE

T = 4


def sampling(k: int, guidance: float = 1.0) -> Sampling:
    return Sampling(T, guidance, k)


def by_hand(policy: DiffusersPolicy, base: DiffusersPolicy, k: int, guidance: float = 1.0) -> Tensor:
    """Euler steps in float32: T - k with one model's velocities and k with another's."""
    sigmas = policy.sigmas(T).tolist()
    x = NoiseSource(0, EVALUATION, policy.latent_shape).draw([0, 1], -1)
    for step in range(T):
        model = policy if step < T - k else base
        with torch.no_grad():
            v = model.velocity(x, torch.full((2,), sigmas[step]), model.conditioning(PROMPTS), guidance)
        x = x - (sigmas[step] - sigmas[step + 1]) * v
    return policy.decode(x)


def drawn(policy: DiffusersPolicy, k: int, merge: object = False, guidance: float = 1.0) -> Tensor:
    return draw_fixed(policy, sampling(k, guidance), PROMPTS, [0, 1], merge)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal up to one gray level in a few pixels, since sums round differently."""
    difference = (a.int() - b.int()).abs()
    return int(difference.max()) <= 1 and float(difference.float().mean()) < 0.01


# a network of one number ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", range(T + 1))
def test_a_network_of_one_number_by_hand(k: int, monkeypatch: pytest.MonkeyPatch):
    """v = scale x + text, with the scale of the policy and then of the base, in float64."""
    policy = SmallPolicy(can_merge=True)
    with torch.no_grad():
        policy.scale.add_(0.25)
    text = policy.conditioning(PROMPTS)["number"].double().reshape(-1, 1, 1, 1)
    sigmas = policy.sigmas(T)
    x = NoiseSource(0, EVALUATION, policy.latent_shape).draw([0, 1], -1).double()
    for step in range(T):
        scale = 0.75 if step < T - k else 0.5
        x = x - (sigmas[step] - sigmas[step + 1]) * (scale * x + text)
    monkeypatch.setattr(policy, "decode", lambda latents: latents)
    torch.testing.assert_close(draw_fixed(policy, sampling(k), PROMPTS, [0, 1]).double(), x, rtol=1e-5, atol=1e-6)
    assert policy.calls == [("merged",)] * (T - k) + [("merged", "base")] * k
    assert policy.in_use == []


def test_the_base_is_left_although_a_step_fails():
    policy = SmallPolicy(broken=PROMPTS[1])
    with pytest.raises(GuardlitError, match="NaN or infinite"):
        draw_fixed(policy, sampling(2), PROMPTS, [0, 1])
    assert policy.in_use == []


@pytest.mark.parametrize("k", [0, 1, 3, T])
def test_steps_of_the_base_have_no_kl_and_cost_no_call(k: int):
    policy = SmallPolicy()
    with torch.no_grad():
        policy.scale.add_(0.25)
    found = []
    for base_steps in (0, k):
        policy.calls.clear()
        kl = ReferenceKL.of(policy, FlowSDE(), Rollout(T, 1.0), sampling(base_steps))
        draw_fixed(policy, sampling(base_steps), PROMPTS, [0, 1], kl=kl)
        found.append(kl.values())
    full, late = found
    assert late.shape == full.shape == (2, T - 1)
    assert torch.equal(late[:, : T - k], full[:, : T - k])
    assert late[:, T - k :].count_nonzero() == 0
    assert float(full.min()) > 0
    assert len(policy.calls) == T + min(T - 1, T - k)


# diffusers' models ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["lora", "full"])
def pair(request: pytest.FixtureRequest, sd3_folder: Path) -> tuple[DiffusersPolicy, DiffusersPolicy]:
    """A policy that has trained, and one that has not."""
    options = {"lora": None, "reference": True} if request.param == "full" else {}
    trained, base = (FAMILIES["sd3"].load(sd3_folder, **options) for _ in range(2))
    disturb(trained, 0.05 if request.param == "full" else 0.3)
    return trained, base


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_policy_steps_first_and_then_the_base(pair: tuple[DiffusersPolicy, DiffusersPolicy], guidance: float):
    trained, base = pair
    before = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    images = [drawn(trained, k, guidance=guidance) for k in range(T + 1)]
    for k, image in enumerate(images):
        assert same(image, by_hand(trained, base, k, guidance)), k
    assert len({image.numpy().tobytes() for image in images}) == T + 1
    assert torch.equal(images[0], drawn(trained, 0, guidance=guidance))
    assert torch.equal(images[T], drawn(base, 0, guidance=guidance))  # bit for bit
    assert all(torch.equal(parameter, before[name]) for name, parameter in trained.named_parameters())


def test_a_merged_adapter_is_taken_out_for_the_last_steps(sd3_folder: Path):
    trained, base = (FAMILIES["sd3"].load(sd3_folder) for _ in range(2))
    disturb(trained, 0.3)
    before = {name: parameter.detach().clone() for name, parameter in trained.named_parameters()}
    for k in range(T + 1):
        assert same(drawn(trained, k, merge=True), drawn(trained, k)), k
    assert torch.equal(drawn(trained, T, merge=True), drawn(base, 0))
    assert all(torch.equal(parameter, before[name]) for name, parameter in trained.named_parameters())
    assert not same(drawn(trained, 0), drawn(trained, 2))


def test_full_fine_tuning_without_a_reference_is_one_line(sd3_folder: Path):
    policy = FAMILIES["sd3"].load(sd3_folder, lora=None)
    drawn(policy, 0)
    with pytest.raises(GuardlitError, match=r"^base_steps=2: .* set model.policy.reference to true"):
        drawn(policy, 2)


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": LoRA(2, 2, targets=("attn.to_q",))}, {"lora": None}, {"lora": None, "reference": True}],
    ids=["lora", "another lora", "full", "full with reference"],
)
@pytest.mark.parametrize("merge", [True, False])
def test_an_exported_lora_gives_the_last_steps_to_the_model_without_it(
    sd3_folder: Path, tmp_path: Path, options: dict, merge: bool
):
    trained = FAMILIES["sd3"].load(sd3_folder)
    disturb(trained, 0.3)
    trained.export(tmp_path)
    policy = FAMILIES["sd3"].load(sd3_folder, **options)
    before = drawn(policy, 0)
    with policy.exported(tmp_path):
        # twice, since the first batch must leave the exported adapter active for the second
        images = [drawn(policy, k, merge) for k in (2, 0, 2, T)]
    for k, image in zip((2, 0, 2, T), images, strict=True):
        assert same(image, drawn(trained, k)), k
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[-1], before)
    assert torch.equal(drawn(policy, 0), before)


def test_an_exported_pipeline_gives_them_to_the_kept_reference(sd3_folder: Path, tmp_path: Path):
    trained, policy = (FAMILIES["sd3"].load(sd3_folder, lora=None, reference=True) for _ in range(2))
    disturb(trained, 0.05)
    trained.export(tmp_path / "whole")
    before = drawn(policy, 0)
    with policy.exported(tmp_path / "whole"):
        for k in (2, 0, T, 2):
            assert torch.equal(drawn(policy, k), drawn(trained, k)), k
    assert torch.equal(drawn(policy, 0), before)


# settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [-1, T + 1])
def test_a_number_that_no_schedule_has_is_one_line(k: int):
    with pytest.raises(
        GuardlitError, match=rf"^base_steps={k} must be at least 0 and at most num_inference_steps={T}$"
    ):
        sampling(k)


def test_the_rollout_has_no_such_setting_and_a_checkpoint_from_before_it_fits():
    assert "base_steps" not in {field.name for field in fields(Rollout())}
    assert str(Sampling(10, 1.0)) == "Sampling(num_inference_steps=10, guidance_scale=1.0)"
    assert str(Sampling(10, 1.0, 2)) == "Sampling(num_inference_steps=10, guidance_scale=1.0, base_steps=2)"
    found = str(Rollout(10, 1.0))
    assert found.startswith("Rollout(num_inference_steps=10, guidance_scale=1.0, timestep_fraction=0.99")


def test_every_family_switches(tiny: Callable[[str], Path]):
    for name in ("flux", "qwen_image", "flux2_klein"):
        trained, base = (FAMILIES[name].load(tiny(name)) for _ in range(2))
        disturb(trained, 0.3)
        assert torch.equal(drawn(trained, T), drawn(base, 0)), name
        assert not torch.equal(drawn(trained, 2), drawn(trained, 0)), name
