"""Images to latents: diffusers' own, in every family; the cache of latents; how a model was trained on images."""

from __future__ import annotations

import math
from pathlib import Path

import diffusers
import pytest
import torch
from families import FAMILIES, SIDE
from small_policy import SmallPolicy
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.folders.embeddings import EmbeddingCache

IMAGES = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def in_the_pipeline(name: str, policy) -> Tensor:
    """The latents of `IMAGES` by diffusers' own image-to-image code, (B, C, H, W)."""
    processor = diffusers.image_processor.VaeImageProcessor()
    images, vae = processor.normalize(IMAGES / 255), policy._outside["vae"]
    if name in ("sd3", "flux"):  # `prepare_latents` of one, `_encode_vae_image` of the other
        z = vae.encode(images).latent_dist.mode()
        return (z - vae.config.shift_factor) * vae.config.scaling_factor
    if name == "qwen_image":
        pipe = diffusers.QwenImageEditPipeline.__new__(diffusers.QwenImageEditPipeline)
        pipe.register_modules(vae=vae)
        pipe.latent_channels = vae.config.z_dim
        return pipe._encode_vae_image(images.unsqueeze(2), generator=None).squeeze(2)
    pipe = diffusers.Flux2KleinPipeline.__new__(diffusers.Flux2KleinPipeline)
    pipe.register_modules(vae=vae)
    return pipe._encode_vae_image(images, generator=None)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_latents_are_those_of_diffusers(name: str, tiny):
    policy = FAMILIES[name].load(tiny(name), decode_batch=2)
    latents = policy.encode_images(IMAGES)
    assert (tuple(latents.shape), latents.dtype) == ((3, *policy.latent_shape), torch.float32)
    torch.testing.assert_close(latents, in_the_pipeline(name, policy), rtol=1e-5, atol=1e-5)
    assert not torch.equal(latents[0], latents[1])


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_what_is_encoded_decodes_as_in_the_autoencoder(name: str, tiny):
    policy = FAMILIES[name].load(tiny(name))
    vae = policy._outside["vae"]
    images = IMAGES / 255 * 2 - 1
    if name == "qwen_image":  # a video VAE
        again = vae.decode(vae.encode(images.unsqueeze(2)).latent_dist.mode()).sample.squeeze(2)
    else:
        again = vae.decode(vae.encode(images).latent_dist.mode()).sample
    gray = ((again / 2 + 0.5).clamp(0, 1) * 255).round()
    assert (policy.decode(policy.encode_images(IMAGES)).float() - gray).abs().max() <= 1


def test_the_vae_is_then_where_it_was_and_needs_no_gradient(sd3_folder: Path):
    policy = FAMILIES["sd3"].load(sd3_folder, vae_device="cpu", decode_dtype="bf16")
    assert not policy.encode_images(IMAGES).requires_grad
    assert policy._outside["vae"].device == torch.device("cpu")
    assert policy._outside["vae"].dtype == torch.float32


def test_entries_are_of_one_vae_and_one_size(sd3_folder: Path, tiny, tmp_path: Path):
    def cache(name: str, side: int = SIDE) -> EmbeddingCache:
        policy = FAMILIES[name].policy(str(tiny(name)), side, cache=str(tmp_path))
        policy.load()
        return policy.latent_cache()

    cache("sd3").add(["digest"], {"latents": torch.ones(1, 16, 8, 8)})
    assert [path.parent.parent for path in tmp_path.rglob("*.safetensors")] == [tmp_path / "latents"]
    assert cache("sd3").missing(["digest"]) == []
    assert cache("sd3", 32).missing(["digest"]) == ["digest"]
    assert cache("flux").missing(["digest"]) == ["digest"]


def test_a_policy_without_encoder_says_so():
    policy = SmallPolicy()
    for ask in (lambda: policy.image_size, lambda: policy.encode_images(IMAGES)):
        with pytest.raises(
            GuardlitError, match=r"SmallPolicy has no image encoder \(encode_images\), which model.data_l"
        ):
            ask()
    times = torch.tensor([0.25, 0.5], dtype=torch.float64)
    assert torch.equal(policy.shifted(times, 10), times)


@pytest.mark.parametrize("name", FAMILIES)
def test_times_are_shifted_as_the_schedule_is(name: str, tiny):
    policy, steps = FAMILIES[name].load(tiny(name)), 8
    scheduler = policy._outside["scheduler"]
    times = torch.tensor([0.125, 0.5, 0.875], dtype=torch.float64)
    shift = 3.0 if name == "sd3" else math.exp(policy._schedule(steps)["mu"])
    torch.testing.assert_close(policy.shifted(times, steps), shift * times / (1 + (shift - 1) * times))
    if name == "flux":  # its schedule is the shift of evenly spaced times
        assert scheduler.config.time_shift_type == "exponential"
        even = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1]
        torch.testing.assert_close(policy.sigmas(steps)[1:-1], policy.shifted(even, steps), rtol=1e-6, atol=1e-6)


def test_only_a_distilled_network_keeps_its_guidance(tiny):
    scales = {name: FAMILIES[name].load(tiny(name)).unguided_scale(3.5) for name in FAMILIES}
    assert scales == {"sd3": 1.0, "flux": 3.5, "qwen_image": 1.0, "flux2_klein": 1.0}
