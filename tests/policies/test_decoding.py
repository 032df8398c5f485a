"""The VAE: in half precision, with an error below a gray level, and in host memory between decodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES
from runs import config, guardlit

from guardlit.commands.plan import planned
from guardlit.errors import GuardlitError
from guardlit.planning.estimate import estimate


def latents(policy, rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, *policy.latent_shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_half_precision_is_off_by_less_than_a_gray_level(name: str, dtype: str, tiny):
    exact, half = (FAMILIES[name].load(tiny(name), decode_dtype=d, decode_batch=2) for d in ("fp32", dtype))
    before, images = exact.decode(latents(exact)), half.decode(latents(exact))
    assert not torch.equal(images, before)
    assert float((images.float() - before.float()).square().mean().sqrt()) < 1.1  # both are rounded
    (vae,) = half._half_vae
    assert {p.dtype for p in vae.parameters()} == {half.decode_dtype}
    assert {p.dtype for p in half._outside["vae"].parameters()} == {torch.float32}  # exported pipelines get this one
    assert not [name for name, _ in half.named_parameters() if "vae" in name]
    large = [p for p in vae.parameters() if p.ndim == 4 and min(p.shape) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in large)


def test_an_error_of_a_gray_level_is_refused_with_its_size(sd3_folder: Path):
    policy = FAMILIES["sd3"].load(sd3_folder, decode_dtype="bf16")
    with torch.no_grad():  # bfloat16 has 8 bits: a trained VAE has large intermediate values, with large errors
        for parameter in policy._outside["vae"].decoder.conv_in.parameters():
            parameter.mul_(30)
        policy._outside["vae"].decoder.conv_out.weight.mul_(30)
    with pytest.raises(GuardlitError, match=r"decode_dtype=torch.bfloat16: images are up to .* gray levels off"):
        policy.decode(latents(policy))


def test_an_overflow_is_refused(sd3_folder: Path):
    policy = FAMILIES["sd3"].load(sd3_folder, decode_dtype="fp16")
    with torch.no_grad():
        policy._outside["vae"].decoder.conv_in.bias.fill_(1e5)
    with pytest.raises(GuardlitError, match="up to inf gray levels"):
        policy.decode(latents(policy))


def test_the_vae_moves_to_its_device_between_decodes(sd3_folder: Path, monkeypatch: pytest.MonkeyPatch):
    policy, moves = FAMILIES["sd3"].load(sd3_folder, vae_device="cpu"), []
    vae, to = policy._outside["vae"], type(policy._outside["vae"]).to
    monkeypatch.setattr(type(vae), "to", lambda self, where: (moves.append(str(where)), to(self, where))[1])
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda *a, **k: (moves.append("decode"), decode(*a, **k))[1])
    images = policy.decode(latents(policy))
    assert moves == ["cpu", "decode", "cpu"]
    policy.vae_device = None
    assert torch.equal(policy.decode(latents(policy)), images)
    assert moves == ["cpu", "decode", "cpu", "cpu", "decode"]


def test_a_device_must_exist(sd3_folder: Path):
    with pytest.raises(GuardlitError, match="vae_device=gpu is no device; write cpu, cuda:0 or null"):
        FAMILIES["sd3"].load(sd3_folder, vae_device="gpu")


def test_a_run_decodes_in_half_precision_and_exports_float32(sd3_folder: Path, tmp_path: Path):
    half = {"model__policy__init_args__decode_dtype": "fp16", "trainer__max_epochs": 1}
    path = config(tmp_path, sd3_folder, model__policy__init_args__lora=None, **half)
    assert guardlit("fit", "--config", path) == 0
    assert guardlit("export", "--config", path, "--ckpt_path", "last", "--out", tmp_path / "out") == 0
    from diffusers import AutoencoderKL

    folder = next((tmp_path / "out").rglob("vae/config.json")).parent.parent
    exported, original = (AutoencoderKL.from_pretrained(f, subfolder="vae") for f in (folder, sd3_folder))
    assert all(torch.equal(a, b) for a, b in zip(exported.parameters(), original.parameters(), strict=True))


def test_the_plan_counts_where_the_vae_is(sd3_folder: Path, tmp_path: Path):
    path = config(tmp_path, sd3_folder, trainer__accelerator="gpu", model__policy__init_args__resolution=64)
    option = "--model.policy.init_args."
    plain, half, resting = (
        estimate(planned(["--config", str(path), *more])).memory
        for more in ([], [option + "decode_dtype=fp16"], [option + "vae_device=cpu"])
    )
    assert half.parts["VAE"] == plain.parts["VAE"] / 2
    assert half.parts["decoding"] < 0.7 * plain.parts["decoding"]
    assert half.host - plain.host == plain.parts["VAE"] == resting.host - plain.host
    assert plain.phases["training"] - resting.phases["training"] == plain.parts["VAE"]
    assert plain.phases["encoding"] - resting.phases["encoding"] == plain.parts["VAE"]
