"""Exported weights in place of the trained ones: a policy's own exports and other LoRAs of the same model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS
from safetensors.torch import load_file, save_file
from torch import Tensor
from velocities import disturb

from guardlit.errors import GuardlitError
from guardlit.policies import LoRA, SD3Policy
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.rollout import sample
from guardlit.sde import ODE

FILE = "pytorch_lora_weights.safetensors"

load = FAMILIES["sd3"].load


def draw(policy: SD3Policy) -> Tensor:
    noise = NoiseSource(0, 0, policy.latent_shape)
    coefficients = ODE().coefficients(policy.sigmas(2))
    return sample(policy, coefficients, policy.conditioning(PROMPTS), noise, [0, 1], 1.0).final


def state(policy: SD3Policy) -> dict[str, tuple[bool, Tensor]]:
    return {name: (p.requires_grad, p.detach().clone()) for name, p in policy.named_parameters()}


def unchanged(policy: SD3Policy, before: dict[str, tuple[bool, Tensor]]) -> bool:
    after = state(policy)
    return before.keys() == after.keys() and all(
        flag == after[name][0] and torch.equal(value, after[name][1]) for name, (flag, value) in before.items()
    )


@pytest.mark.parametrize(
    "options", [{}, {"weights_dtype": "bf16"}, {"lora": None}], ids=["lora", "lora on bf16", "full"]
)
def test_an_export_gives_the_policys_images(sd3_folder: Path, tmp_path: Path, options: dict):
    policy = load(sd3_folder, **options)
    base, before = draw(policy), state(policy)
    trained = load(sd3_folder, **options)
    disturb(trained)
    trained.export(tmp_path / "export")
    with policy.exported(tmp_path / "export"):
        assert torch.equal(draw(policy), draw(trained))
    assert not torch.equal(draw(trained), base)
    assert torch.equal(draw(policy), base)
    assert unchanged(policy, before)


@pytest.mark.parametrize("lora", [LoRA(2, 2), None], ids=["with another LoRA", "full"])
def test_a_lora_of_another_rank_and_scale_gives_the_pipelines_velocity(
    sd3_folder: Path, tmp_path: Path, lora: LoRA | None
):
    from diffusers import StableDiffusion3Pipeline

    other = load(sd3_folder, lora=LoRA(5, 20, targets=("attn.to_q", "attn.to_v")))
    disturb(other)
    other.export(tmp_path)
    policy = load(sd3_folder, lora=lora)
    before = state(policy)
    noise = NoiseSource(0, 0, policy.latent_shape).draw([0, 1], -1)
    with policy.exported(tmp_path):
        ours = draw(policy)
    assert unchanged(policy, before)
    pipe = StableDiffusion3Pipeline.from_pretrained(sd3_folder, local_files_only=True)
    pipe.load_lora_weights(tmp_path)
    size = {"height": 64, "width": 64, "max_sequence_length": 16}
    options = {"num_inference_steps": 2, "guidance_scale": 1.0, "latents": noise, "output_type": "latent"}
    theirs = pipe(PROMPTS, **options, **size).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture
def lora_folder(sd3_folder: Path, tmp_path: Path) -> Path:
    policy = load(sd3_folder)
    disturb(policy)
    policy.export(tmp_path / "lora")
    return tmp_path / "lora"


def _rename(folder: Path, key: str) -> None:
    tensors = load_file(folder / FILE)
    tensors[key] = tensors.pop(min(tensors))
    save_file(tensors, folder / FILE)


def _transpose(folder: Path) -> None:
    tensors = load_file(folder / FILE)
    first = min(tensors)
    save_file(tensors | {first: tensors[first].repeat(1, 3)}, folder / FILE)


def _cut(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-100])


def _two(folder: Path) -> None:
    (folder / FILE).rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")


FAULTS = {
    "empty": (lambda f: (f / FILE).unlink(), "holds no safetensors file; a LoRA is one file"),
    "two": (_two, "holds a.safetensors, b.safetensors; a LoRA is one file"),
    "truncated": (_cut, "cannot be read as a safetensors file"),
    "text encoder": (lambda f: _rename(f, "text_encoder.layer.lora_A.weight"), "it also changes text encoders"),
    "another layer": (
        lambda f: _rename(f, "transformer.nowhere.lora_A.weight"),
        "1 of its tensors have no place in this SD3",
    ),
    "another shape": (_transpose, "not a LoRA of this SD3Transformer2DModel"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_lora_is_named(sd3_folder: Path, lora_folder: Path, fault: str):
    policy = load(sd3_folder)
    before = state(policy)
    change, says = FAULTS[fault]
    change(lora_folder)
    with pytest.raises(GuardlitError, match=says), policy.exported(lora_folder):
        raise AssertionError("was taken")
    assert unchanged(policy, before)
    draw(policy)


def test_a_pipeline_folder_is_not_a_lora(sd3_folder: Path):
    policy = load(sd3_folder)
    with pytest.raises(GuardlitError, match="is a whole pipeline and this configuration trains a LoRA"):
        policy.exported(sd3_folder).__enter__()


def test_a_transformer_of_another_size_is_refused(sd3_folder: Path, tmp_path: Path):
    from tiny_folders import make_sd3

    with pytest.raises(GuardlitError, match="its transformer has other layers than"):
        load(sd3_folder, lora=None).exported(make_sd3(tmp_path, pos_embed_max_size=16)).__enter__()


def test_the_source_works_before_loading_and_depends_on_the_files(sd3_folder: Path, tmp_path: Path):
    copy = Path(shutil.copytree(sd3_folder, tmp_path / "copy"))
    policy = SD3Policy(str(copy), resolution=64)
    before = policy.source()
    assert policy.transformer is None
    assert before["files"] == SD3Policy(str(sd3_folder), resolution=64).source()["files"]
    assert before != SD3Policy(str(copy), resolution=32).source()
    weights = next(copy.glob("vae/*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert policy.source()["files"] != before["files"]
