"""Requirements of every policy, on tiny folders in the published formats, against diffusers' own pipelines."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS, SIDE, Family
from torch import Tensor
from velocities import disturb, velocity

from guardlit.errors import GuardlitError
from guardlit.objective import GRPOGuard
from guardlit.policies import DiffusersPolicy, LoRA
from guardlit.rounds.noise import INITIAL, NoiseSource
from guardlit.rounds.rollout import sample
from guardlit.sde import ODE, FlowSDE

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


@pytest.fixture(scope="module", params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def family(name: str) -> Family:
    return FAMILIES[name]


@pytest.fixture(scope="module")
def folder(name: str, tiny: Callable[[str], Path]) -> Path:
    return tiny(name)


@pytest.fixture(scope="module")
def policy(family: Family, folder: Path) -> DiffusersPolicy:
    """For tests that do not change it."""
    torch.manual_seed(0)
    return family.load(folder)


# against the pipeline -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_the_euler_ode_gives_the_pipelines_images(policy, family: Family, folder: Path, guidance: float):
    """Schedule, embeddings, packing, guidance, the velocity's sign and the VAE, all at once.

    The tolerance is that of float32: guidance takes one batch here and two calls there, and text is padded to a fixed
    length here and to the longest prompt there.
    """
    noise = NoiseSource(0, 0, policy.latent_shape)
    ours = sample(policy, ODE().coefficients(policy.sigmas(4)), policy.conditioning(PROMPTS), noise, [0, 1], guidance)
    pipe, seen = family.pipeline(folder), []

    def see(pipe: object, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(tensors["latents"])
        return tensors

    images = family.draw(
        pipe, guidance, 4, latents=family.tokens(noise.draw([0, 1], INITIAL)), callback_on_step_end=see
    )
    assert torch.equal(policy.sigmas(4), pipe.scheduler.sigmas.double())
    torch.testing.assert_close(ours.final, family.latents(seen[-1]), rtol=1e-4, atol=1e-4)
    expected = (images * 255).round().to(torch.uint8)
    assert policy.decode(ours.final).shape == (2, 3, SIDE, SIDE)
    assert int((policy.decode(ours.final).int() - expected.int()).abs().max()) <= 1
    assert float(images.std()) > 0.01


def test_guidance_and_prompts_matter(policy):
    x, sigma = NoiseSource(1, 0, policy.latent_shape).draw([0, 0], 0), torch.tensor([0.5, 0.5])
    plain = policy.velocity(x, sigma, policy.conditioning(PROMPTS), 1.0)
    assert float((plain[0] - plain[1]).abs().max()) > 1e-3
    assert float((policy.velocity(x, sigma, policy.conditioning(PROMPTS), 3.5) - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_rows_at_different_timesteps_equal_single_rows(policy, guidance: float):
    x = torch.randn(3, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0, 0.6, 0.1])
    conditioning = policy.conditioning(["a cat", "two dogs on a table", "a cat"])
    batch = policy.velocity(x, sigma, conditioning, guidance)
    for i in range(3):
        row = {k: v[i : i + 1] for k, v in conditioning.items()}
        alone = policy.velocity(x[i : i + 1], sigma[i : i + 1], row, guidance)
        torch.testing.assert_close(alone, batch[i : i + 1], rtol=1e-4, atol=1e-5)


def test_the_ratio_is_exactly_1_before_the_first_update(policy):
    c = FlowSDE(0.7).coefficients(policy.sigmas(4))
    noise, conditioning = NoiseSource(0, 0, policy.latent_shape), policy.conditioning(PROMPTS)
    with policy.using("old"):
        drawn = sample(policy, c, conditioning, noise, [0, 1], 3.5, record=torch.arange(3).expand(2, -1))
    for step in range(3):
        again = policy.velocity(drawn.latents[:, step], torch.full((2,), float(c.sigmas[step])), conditioning, 3.5)
        old, eps = drawn.velocity[:, step], noise.draw([0, 1], step)
        one = {k: getattr(c, k)[step].expand(2) for k in ("std", "dt")} | {"gain": c.velocity[step].expand(2)}
        out = GRPOGuard(clip_range=4e-6)(again, old, eps, advantage=torch.ones(2), **one)
        assert out.log_ratio.tolist() == [0.0, 0.0]
        assert again.requires_grad


# weights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [LoRA(4, 8), None], ids=["lora", "full"])
def test_three_weight_sets(family: Family, folder: Path, lora: LoRA | None):
    policy = family.load(folder, lora=lora, reference=True)
    base = velocity(policy).detach()
    disturb(policy)
    policy.refresh_old()
    old = velocity(policy).detach()
    disturb(policy)
    now = velocity(policy)
    flags = {n: p.requires_grad for n, p in policy.named_parameters()}
    with policy.using("old"):
        as_old = velocity(policy)
    with policy.using("reference"):
        as_base = velocity(policy)
    assert torch.equal(as_old, old)
    assert torch.equal(as_base, base)
    assert not as_old.requires_grad
    assert torch.equal(velocity(policy), now)
    assert {n: p.requires_grad for n, p in policy.named_parameters()} == flags
    assert min(float((a - b).abs().max()) for a, b in [(base, old), (old, now)]) > 1e-4
    state = policy.old_state()
    policy.refresh_old()
    policy.load_old_state(state)
    with policy.using("old"):
        assert torch.equal(velocity(policy), old)


def test_trained_parameters_and_the_module_tree(policy, family: Family):
    trained = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * family.lora_layers
    assert all(".default." in n for n in trained)
    assert not any(part in n for n, _ in policy.named_parameters() for part in ("vae", "text_encoder"))
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("lora", [LoRA(4, 8), None], ids=["lora", "full"])
def test_every_trained_parameter_gets_a_gradient(family: Family, folder: Path, lora: LoRA | None):
    """DDP would wait for a missing one."""
    policy = family.load(folder, lora=lora)
    velocity(policy).square().mean().backward()
    assert [n for n, p in policy.named_parameters() if p.requires_grad and p.grad is None] == []


def test_frozen_weights_in_half_precision_keep_the_adapter_float32(family: Family, folder: Path):
    policy = family.load(folder, weights_dtype="bf16", text_encoder_dtype="fp16")
    dtypes = {p.requires_grad: p.dtype for n, p in policy.named_parameters() if ".old." not in n}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        predicted = velocity(policy)
    assert predicted.dtype == torch.float32
    predicted.sum().backward()


def test_gradient_checkpointing_changes_no_gradient(family: Family, folder: Path):
    def gradients(**options: object) -> list[Tensor]:
        torch.manual_seed(0)
        policy = family.load(folder, **options)
        assert policy.transformer.is_gradient_checkpointing == policy.gradient_checkpointing
        disturb(policy)
        velocity(policy).square().mean().backward()
        return [p.grad for p in policy.parameters() if p.grad is not None]

    for plain, checkpointed in zip(gradients(), gradients(gradient_checkpointing=True), strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-8)


def test_an_exported_lora_gives_identical_images(family: Family, folder: Path, tmp_path: Path):
    policy = family.load(folder)
    disturb(policy)  # alpha / rank = 2: a reader that assumes alpha = rank fails
    policy.export(tmp_path)
    seed = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    fresh = family.pipeline(folder)
    untrained = family.draw(fresh, 3.5, generator=seed())
    fresh.load_lora_weights(tmp_path)
    loaded = family.draw(fresh, 3.5, generator=seed())
    trained = family.draw(family.pipeline(folder, transformer=policy.transformer), 3.5, generator=seed())
    assert float((loaded - trained).abs().max()) == 0
    assert float((loaded - untrained).abs().max()) > 1e-3


def test_a_fully_trained_model_exports_as_a_pipeline_folder(family: Family, folder: Path, tmp_path: Path):
    policy = family.load(folder, lora=None)
    disturb(policy)
    policy.export(tmp_path / "pipeline")
    pipe = family.pipeline(tmp_path / "pipeline")
    ours = policy.transformer.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in pipe.transformer.state_dict().items())
    again = family.load(tmp_path / "pipeline")  # training can start from it
    torch.testing.assert_close(velocity(again), velocity(policy), rtol=0, atol=1e-5)  # rounding: layers with a LoRA


# prompts ------------------------------------------------------------------------------------------------------------


def test_text_encoders_load_for_new_prompts_only_and_are_freed(
    family: Family, folder: Path, tmp_path: Path, monkeypatch
):
    encoders: list[list[weakref.ref]] = []
    original = DiffusersPolicy._pipeline

    def spied(self: DiffusersPolicy, *args: object) -> object:
        pipe = original(self, *args)
        encoders.append([weakref.ref(p) for name, p in pipe.components.items() if name.startswith("text_encoder")])
        return pipe

    monkeypatch.setattr(DiffusersPolicy, "_pipeline", spied)
    first = family.load(folder, cache=str(tmp_path))
    assert len(encoders) == 1
    assert encoders[0]
    assert [ref() for ref in encoders[0] if ref() is not None] == []  # their memory is free for training
    assert velocity(first).isfinite().all()
    first.encode(PROMPTS)
    again = family.load(folder, cache=str(tmp_path))  # another run reads from disk
    assert len(encoders) == 1
    mine, theirs = first.conditioning(PROMPTS), again.conditioning(PROMPTS)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    again.encode(["a new one"], ahead=["one for later"])
    again.encode(["one for later"])
    assert len(encoders) == 2
    family.load(folder, cache=str(tmp_path), max_sequence_length=family.length - 2)  # other settings have other entries
    assert len(encoders) == 3


# unusable folders ---------------------------------------------------------------------------------------------------


def complaint(family: Family, folder: Path, **options: object) -> str:
    with pytest.raises(GuardlitError) as caught:
        family.load(folder, **options)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _edited(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_the_folder_of_another_pipeline(family: Family, folder: Path, tmp_path: Path):
    copy = _edited(folder, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "SanaPipeline"}))
    assert f"holds a SanaPipeline; {family.policy.pipeline_class} is needed" in complaint(family, copy)


def test_a_missing_component(family: Family, folder: Path, tmp_path: Path):
    assert {"transformer", "vae", "scheduler", "text_encoder"} <= set(family.policy.components)
    for component in family.policy.components:
        copy = _edited(folder, tmp_path / component)
        shutil.rmtree(copy / component)
        assert f"lacks the component '{component}'" in complaint(family, copy)


def test_missing_weights(family: Family, folder: Path, tmp_path: Path):
    for component in ("transformer", "vae"):
        copy = _edited(folder, tmp_path / component)
        (copy / component / "diffusion_pytorch_model.safetensors").unlink()
        assert f"{component} cannot be loaded as" in complaint(family, copy)
    copy = _edited(folder, tmp_path / "text")
    (copy / "text_encoder/model.safetensors").unlink()
    assert "text encoders cannot be loaded" in complaint(family, copy)


def test_an_absent_weight(family: Family, folder: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    copy = _edited(folder, tmp_path / "copy")
    path = copy / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop("proj_out.weight")
    save_file(tensors, path)
    assert "1 missing keys for" in complaint(family, copy)


def test_a_resolution_that_does_not_divide(family: Family, folder: Path):
    with pytest.raises(GuardlitError, match="resolution=72 must be a multiple of 16"):
        family.policy(str(folder), 72, cache=None).load()
