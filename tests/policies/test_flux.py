"""What is specific to FLUX.1: guidance as an input, a shift that grows with the image, packed latents."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS
from runs import guardlit, newest
from safetensors.torch import load_file
from tiny_folders import make_flux

from guardlit.errors import GuardlitError
from guardlit.policies import FluxPolicy, LoRA
from guardlit.policies.packing import pack, unpack
from guardlit.rounds.noise import NoiseSource

FLUX = FAMILIES["flux"]


@pytest.fixture(scope="module")
def folder(tiny) -> Path:
    return tiny("flux")


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> FluxPolicy:
    return FLUX.load(make_flux(tmp_path_factory.mktemp("schnell"), guidance_embeds=False))


@pytest.mark.parametrize(("pixels", "steps"), [(256, 6), (512, 2), (768, 3), (1024, 2)])
def test_the_schedule_of_any_size_is_the_pipelines_bit_for_bit(folder: Path, pixels: int, steps: int):
    ours, pipelines = FLUX.schedules(folder, pixels, steps)
    assert torch.equal(ours.float(), pipelines)
    mu = 0.5 + (1.15 - 0.5) * ((pixels // 16) ** 2 - 256) / (4096 - 256)  # by hand, from FLUX.1's report
    t = [1 - i / steps for i in range(steps)]
    expected = [math.exp(mu) * s / (math.exp(mu) * s + 1 - s) for s in t]
    assert ours.tolist() == pytest.approx([*expected, 0.0], rel=1e-6)


def test_schnells_schedule_is_not_shifted(schnell: FluxPolicy):
    assert schnell.sigmas(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_any_guidance_is_one_forward_pass_with_the_scale_as_input(folder: Path, guidance: float, monkeypatch):
    policy, calls = FLUX.load(folder), []
    forward = policy.transformer.forward
    monkeypatch.setattr(policy.transformer, "forward", lambda **kw: calls.append(kw) or forward(**kw))
    x = NoiseSource(1, 0, policy.latent_shape).draw([0, 1], 0)
    policy.velocity(x, torch.tensor([0.5, 0.5]), policy.conditioning(PROMPTS), guidance)
    (call,) = calls
    assert call["guidance"].tolist() == [guidance, guidance]
    assert call["hidden_states"].shape == (2, 16, 64)


def test_no_empty_prompt_is_encoded(folder: Path):
    policy = FLUX.load(folder)
    assert policy._embeddings.missing([""]) == [""]


def test_a_model_without_guidance_embedding_takes_only_1(schnell: FluxPolicy):
    x, sigma = NoiseSource(1, 0, schnell.latent_shape).draw([0, 1], 0), torch.tensor([0.5, 0.5])
    conditioning = schnell.conditioning(PROMPTS)
    assert schnell.velocity(x, sigma, conditioning, 1.0).isfinite().all()
    with pytest.raises(GuardlitError, match=r"guidance_scale=3.5: .* set model.rollout.guidance_scale and") as caught:
        schnell.velocity(x, sigma, conditioning, 3.5)
    assert "\n" not in str(caught.value)


def test_without_guidance_embedding_images_are_the_pipelines(schnell: FluxPolicy):
    pipe = FLUX.pipeline(Path(schnell.model))
    images = FLUX.draw(pipe, 1.0, 4, latents=FLUX.tokens(NoiseSource(0, 0, schnell.latent_shape).draw([0, 1], -1)))
    assert torch.equal(schnell.sigmas(4).float(), pipe.scheduler.sigmas)
    assert images.isfinite().all()


def test_the_default_adapter_is_flow_grpos():
    assert inspect.signature(FluxPolicy).parameters["lora"].default == LoRA(64, 128)


def test_packing_is_the_pipelines():
    x = torch.arange(2.0 * 16 * 6 * 4).reshape(2, 16, 6, 4)
    from diffusers import FluxPipeline

    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, *x.shape))
    assert torch.equal(unpack(pack(x), x.shape), x)


def test_the_published_settings_train_tiny_folders(
    folder: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GUARDLIT_CACHE", str(tmp_path / "cache"))
    published = Path(__file__).parents[2] / "configs/flux_pickscore.yaml"
    folders = (f"--model.policy.model={folder}", f"--model.reward.model={clip_folder}")
    small = ("--data.prompts_per_round=2", "--data.images_per_prompt=3", "--data.val_limit=1")
    here = ("--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1")
    assert guardlit("fit", "--config", published, *folders, *small, *here) == 0
    checkpoint = torch.load(newest(tmp_path), weights_only=True)
    assert checkpoint["global_step"] == 2
    assert {len(w) for name, w in checkpoint["state_dict"].items() if "lora_A" in name} == {64}
    exported = load_file(next(tmp_path.rglob("export/raw/*.safetensors")))
    assert max(float(weight.abs().max()) for name, weight in exported.items() if "lora_B" in name) > 0  # it was trained
