"""The SD3 policy against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from guardlit.noise import NoiseSource
from guardlit.policies import LoRA, SD3Policy
from guardlit.policies.embeddings import EmbeddingCache
from guardlit.rollout import sample
from guardlit.sde import ODE, FlowSDE

PROMPTS = ["a cat", "two dogs on a table"]


def load(folder: Path, **options: object) -> SD3Policy:
    settings = {"resolution": 64, "lora": LoRA(4, 8), "cache": None, "max_sequence_length": 16, **options}
    policy = SD3Policy(str(folder), **settings)
    policy.load()
    policy.encode(PROMPTS)
    return policy


@pytest.fixture
def policy(sd3_folder: Path) -> SD3Policy:
    torch.manual_seed(0)
    return load(sd3_folder)


@torch.no_grad()
def disturb(policy: SD3Policy) -> None:
    """Give the adapter an effect: it starts as none."""
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))), alpha=0.1)


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_the_euler_ode_draws_the_pipelines_own_images(policy: SD3Policy, sd3_folder: Path, guidance: float):
    from diffusers import StableDiffusion3Pipeline

    noise = NoiseSource(0, 0, policy.latent_shape)
    c = ODE().coefficients(policy.sigmas(4))
    ours = sample(policy, c, policy.conditioning(PROMPTS), noise, [0, 1], guidance).final
    pipe = StableDiffusion3Pipeline.from_pretrained(sd3_folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    options = dict(num_inference_steps=4, guidance_scale=guidance, height=64, width=64, max_sequence_length=16)
    theirs = pipe(PROMPTS, latents=noise.draw([0, 1], -1), output_type="latent", **options).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    images = pipe(PROMPTS, latents=noise.draw([0, 1], -1), output_type="pt", **options).images
    expected = (images * 255).round().to(torch.uint8)
    assert int((policy.decode(ours).int() - expected.int()).abs().max()) <= 1


def test_recorded_steps_replay(policy: SD3Policy):
    c = FlowSDE(0.7).coefficients(policy.sigmas(5))
    noise = NoiseSource(0, 0, policy.latent_shape)
    trajectory = sample(policy, c, policy.conditioning(PROMPTS), noise, [0, 1], 1.0, record=4)
    assert trajectory.latents.shape == trajectory.velocity.shape == (2, 4, *policy.latent_shape)
    for step in range(3):
        x, v = trajectory.latents[:, step], trajectory.velocity[:, step]
        expected = c.sample[step] * x + c.velocity[step] * v + c.std[step] * noise.draw([0, 1], step)
        torch.testing.assert_close(trajectory.latents[:, step + 1], expected.float(), rtol=1e-5, atol=1e-5)


def test_rows_at_different_times_equal_rows_alone(policy: SD3Policy):
    x = torch.randn(3, *policy.latent_shape)
    sigma = torch.tensor([1.0, 0.6, 0.1])
    conditioning = policy.conditioning(["a cat", "two dogs on a table", "a cat"])
    together = policy.velocity(x, sigma, conditioning, 4.5)
    for i in range(3):
        row = {k: v[i : i + 1] for k, v in conditioning.items()}
        torch.testing.assert_close(
            policy.velocity(x[i : i + 1], sigma[i : i + 1], row, 4.5), together[i : i + 1], rtol=1e-4, atol=1e-5
        )


def _velocity(policy: SD3Policy) -> Tensor:
    x = NoiseSource(1, 0, policy.latent_shape).draw([0, 1], 0)
    return policy.velocity(x, torch.tensor([0.9, 0.4]), policy.conditioning(PROMPTS), 1.0)


@pytest.mark.parametrize("lora", [LoRA(4, 8), None])
def test_three_weight_sets(sd3_folder: Path, lora: LoRA | None):
    policy = load(sd3_folder, lora=lora, reference=True)
    base = _velocity(policy).detach()
    disturb(policy)
    policy.refresh_old()
    old = _velocity(policy).detach()
    disturb(policy)
    now = _velocity(policy)
    flags = {n: p.requires_grad for n, p in policy.named_parameters()}
    with policy.using("old"):
        as_old = _velocity(policy)
    with policy.using("reference"):
        as_base = _velocity(policy)
    assert torch.equal(as_old, old)
    assert torch.equal(as_base, base)
    assert not as_old.requires_grad
    assert torch.equal(_velocity(policy), now)
    assert {n: p.requires_grad for n, p in policy.named_parameters()} == flags
    assert min(float((a - b).abs().max()) for a, b in [(base, old), (old, now)]) > 1e-4
    state = policy.old_state()
    policy.refresh_old()
    policy.load_old_state(state)
    with policy.using("old"):
        assert torch.equal(_velocity(policy), old)


def test_autocast_never_serves_one_sets_weights_to_another(sd3_folder: Path):
    policy = load(sd3_folder, lora=None)
    with torch.autocast("cpu", torch.bfloat16):
        before = _velocity(policy).detach()
        disturb(policy)
        with policy.using("old"):
            assert torch.equal(_velocity(policy), before)
        assert not torch.equal(_velocity(policy), before)


def test_what_trains_and_what_a_module_shows(policy: SD3Policy):
    trained = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert trained
    assert all(".default." in n and ".attn." in n for n in trained)  # attn2 is left out
    assert not any(part in n for n, _ in policy.named_parameters() for part in ("vae", "text_encoder"))
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}


def test_frozen_weights_in_half_precision_leave_the_adapter_whole(sd3_folder: Path):
    policy = load(sd3_folder, weights_dtype="bf16")
    dtypes = {p.requires_grad: p.dtype for n, p in policy.named_parameters() if ".old." not in n}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        velocity = _velocity(policy)
    assert velocity.dtype == torch.float32
    velocity.sum().backward()


def test_gradient_checkpointing_changes_no_gradient(sd3_folder: Path):
    def gradients(**options: object) -> list[Tensor]:
        torch.manual_seed(0)
        policy = load(sd3_folder, **options)
        disturb(policy)
        _velocity(policy).square().mean().backward()
        return [p.grad for p in policy.parameters() if p.grad is not None]

    for plain, checkpointed in zip(gradients(), gradients(gradient_checkpointing=True), strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-8)


def test_an_exported_lora_draws_identical_images(policy: SD3Policy, sd3_folder: Path, tmp_path: Path):
    from diffusers import StableDiffusion3Pipeline

    disturb(policy)  # alpha / rank = 2: a reader that takes alpha = rank is off by a factor
    policy.export(tmp_path)
    options = dict(
        num_inference_steps=3, guidance_scale=4.5, height=64, width=64, output_type="pt", max_sequence_length=16
    )

    def draw(pipe: StableDiffusion3Pipeline) -> Tensor:
        pipe.set_progress_bar_config(disable=True)
        return pipe(PROMPTS, generator=torch.Generator().manual_seed(0), **options).images

    fresh = StableDiffusion3Pipeline.from_pretrained(sd3_folder, local_files_only=True)
    untrained = draw(fresh)
    fresh.load_lora_weights(tmp_path)
    trained = StableDiffusion3Pipeline.from_pretrained(
        sd3_folder, transformer=policy.transformer, local_files_only=True
    )
    assert float((draw(fresh) - draw(trained)).abs().max()) == 0
    assert float((draw(fresh) - untrained).abs().max()) > 1e-3


def test_a_fully_trained_model_exports_as_a_pipeline_folder(sd3_folder: Path, tmp_path: Path):
    from diffusers import StableDiffusion3Pipeline

    policy = load(sd3_folder, lora=None)
    disturb(policy)
    policy.export(tmp_path / "pipeline")
    pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "pipeline", local_files_only=True)
    ours = policy.transformer.state_dict()
    assert all(torch.equal(ours[k], v) for k, v in pipe.transformer.state_dict().items())
    assert pipe.text_encoder_3 is not None
    assert pipe.tokenizer.vocab_size > 0


def test_text_encoders_load_only_for_new_prompts(sd3_folder: Path, tmp_path: Path, monkeypatch):
    loads = []
    original = SD3Policy._pipeline
    monkeypatch.setattr(SD3Policy, "_pipeline", lambda self, **kw: loads.append(1) or original(self, **kw))
    first = load(sd3_folder, cache=str(tmp_path))
    assert len(loads) == 1
    first.encode(PROMPTS)
    again = load(sd3_folder, cache=str(tmp_path))  # another run: from disk
    assert len(loads) == 1
    mine, theirs = first.conditioning(PROMPTS), again.conditioning(PROMPTS)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    again.encode(["a new one"], ahead=["one for later"])
    again.encode(["one for later"])
    assert len(loads) == 2
    load(sd3_folder, cache=str(tmp_path), max_sequence_length=8)  # other settings share nothing
    assert len(loads) == 3


def test_a_damaged_cache_entry_is_made_again(tmp_path: Path):
    cache = EmbeddingCache("key", tmp_path)
    cache.add(["a"], {"x": torch.ones(1, 3)})
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"rubbish")
    fresh = EmbeddingCache("key", tmp_path)
    assert fresh.missing(["a"]) == ["a"]
    with pytest.raises(KeyError, match="never encoded"):
        fresh.get(["a"])


def test_a_full_memory_falls_back_to_disk(tmp_path: Path):
    cache = EmbeddingCache("key", tmp_path, capacity=1)
    cache.add(["a", "b"], {"x": torch.tensor([[1.0], [2.0]])})
    assert cache.missing(["a", "b"]) == []
    assert cache.get(["b", "a"])["x"].tolist() == [[2.0], [1.0]]
