"""An exported LoRA has the right scale for every reader, and a policy may start from a LoRA."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, SIDE
from lora_files import RANK, Made, diffusers_header, weights
from runs import guardlit
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from velocities import disturb, velocity

from guardlit.errors import GuardlitError
from guardlit.policies import DiffusersPolicy, LoRA, SD3Policy

FILE = "pytorch_lora_weights.safetensors"
PEFT_018 = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules"}
"""Settings in our header; every version of peft since 0.18 has these fields."""


def header_of(folder: Path) -> dict[str, str]:
    with safe_open(folder / FILE, framework="pt") as file:
        return dict(file.metadata())


def without_header(folder: Path, other: Path) -> Path:
    other.mkdir()
    save_file(load_file(folder / FILE), other / FILE)
    return other


def in_diffusers(family: str, folder: Path, lora: Path, policy: DiffusersPolicy) -> torch.Tensor:
    """The velocity of `velocity` from the pipeline's own transformer, which loads the LoRA by itself."""
    pipe = FAMILIES[family].pipeline(folder)
    pipe.load_lora_weights(lora)
    own, policy.transformer = policy.transformer, pipe.transformer.eval()
    try:
        return velocity(policy)
    finally:
        policy.transformer = own


@pytest.mark.parametrize("lora", [LoRA(4, 8), LoRA(3, 7)], ids=["scale 2", "scale 7/3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_readers_with_and_without_the_header_agree(
    family: str, lora: LoRA, tiny: Callable[[str], Path], tmp_path: Path
):
    folder = tiny(family)
    policy = FAMILIES[family].load(folder, lora=lora)
    disturb(policy)
    policy.export(tmp_path / "own")
    without_header(tmp_path / "own", tmp_path / "bare")
    with torch.no_grad():
        trained = velocity(policy)
        for name in ("own", "bare"):
            found = in_diffusers(family, folder, tmp_path / name, policy)
            torch.testing.assert_close(found, trained, rtol=1e-5, atol=1e-5)
            with policy.using("reference"):
                assert not torch.allclose(found, velocity(policy), rtol=1e-2, atol=1e-2)


def test_the_header_names_rank_alpha_and_targets(sd3_folder: Path, tmp_path: Path):
    policy = FAMILIES["sd3"].load(sd3_folder, lora=LoRA(4, 8))
    policy.export(tmp_path)
    header = header_of(tmp_path)
    settings = {k.removeprefix("transformer."): v for k, v in json.loads(header["lora_adapter_metadata"]).items()}
    assert settings.keys() == PEFT_018
    assert (settings["r"], settings["lora_alpha"], settings["rank_pattern"]) == (4, 4, {})  # 8 / 4 is in B
    keys = load_file(tmp_path / FILE)
    assert {f"transformer.{name}.lora_A.weight" for name in settings["target_modules"]} <= keys.keys()
    assert len(settings["target_modules"]) == FAMILIES["sd3"].lora_layers
    assert json.loads(header["guardlit"]) == {"trained_scales": 2.0}


# starting from a LoRA -------------------------------------------------------------------------------------------------


def start(folder: Path, place: Path, family: str = "sd3", **options: Any) -> DiffusersPolicy:
    return FAMILIES[family].load(folder, lora=LoRA(start=str(place)), **options)


def test_a_policy_starts_from_an_export(sd3_folder: Path, tmp_path: Path):
    """Weights, rank and alpha are those of the training that wrote it, bit for bit; the reference is the base."""
    before = FAMILIES["sd3"].load(sd3_folder, lora=LoRA(4, 8))
    with before.using("reference"):
        base = velocity(before)
    disturb(before)
    before.export(tmp_path)
    policy = start(sd3_folder, tmp_path)
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    expected = {name: p for name, p in before.named_parameters() if p.requires_grad}
    assert trained.keys() == expected.keys()
    assert all(torch.equal(p, expected[name]) for name, p in trained.items())
    layer = policy.transformer.transformer_blocks[0].attn.to_q
    assert (layer.r["default"], layer.lora_alpha["default"], layer.scaling["default"]) == (4, 8, 2)
    with torch.no_grad():
        assert torch.equal(velocity(policy), velocity(before))
    with policy.using("old"):
        assert torch.equal(velocity(policy), velocity(before))
    for context in (policy.using("reference"), policy.base()):
        with context:
            assert torch.equal(velocity(policy), base)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_policy_starts_from_other_ranks_alphas_and_layers(family: str, tiny: Callable[[str], Path], tmp_path: Path):
    """Trained on, and exported for diffusers, which must see each layer's rank."""
    folder = tiny(family)
    plain = FAMILIES[family].load(folder)
    made = Made(plain.transformer)
    made.plain("transformer_blocks.0.attn.to_k", 2.0, rank=2, alpha=torch.tensor(4.0))
    made.plain("transformer_blocks.0.norm1.linear", 0.5, rank=6, alpha=torch.tensor(3.0))
    made.plain("proj_out", 1.0, rank=2, alpha=torch.tensor(2.0))
    made.save(tmp_path / "theirs")
    policy = start(folder, tmp_path / "theirs", family)
    with weights(plain.transformer, made), torch.no_grad():
        torch.testing.assert_close(velocity(policy), velocity(plain), rtol=1e-4, atol=1e-4)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert len(trained) == 6
    velocity(policy).square().mean().backward()
    assert all(bool(p.grad.abs().max() > 0) for p in policy.parameters() if p.requires_grad)
    disturb(policy)
    policy.export(tmp_path / "ours")
    again = start(folder, tmp_path / "ours", family)
    with torch.no_grad():
        ours = velocity(policy)
        for place in (tmp_path / "ours", without_header(tmp_path / "ours", tmp_path / "bare")):
            torch.testing.assert_close(in_diffusers(family, folder, place, policy), ours, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(velocity(again), ours, rtol=1e-6, atol=1e-6)
    assert again.fingerprint() == policy.fingerprint()


def test_the_fingerprint_holds_ranks_and_scales_of_the_start(sd3_folder: Path, tmp_path: Path):
    """A checkpoint cannot be resumed on a start of another alpha."""
    made = Made(FAMILIES["sd3"].load(sd3_folder).transformer)
    made.plain("transformer_blocks.0.attn.to_k", 1.0)
    places = [made.save(tmp_path / str(a), diffusers_header(r=RANK, lora_alpha=a)) for a in (4, 8)]
    found = [start(sd3_folder, place).fingerprint()["lora"] for place in places]
    assert found[0].startswith("rank 4 in 1 layers (")
    assert found[0] != found[1]
    assert str(LoRA(4, 8, start="x")) == str(LoRA(4, 8))


def test_a_skeleton_has_the_layers_of_the_start(sd3_folder: Path, tmp_path: Path):
    made = Made(FAMILIES["sd3"].load(sd3_folder).transformer)
    made.plain("transformer_blocks.0.attn.to_k", 1.0, rank=2)
    policy = FAMILIES["sd3"].policy(str(sd3_folder), SIDE, LoRA(start=str(made.save(tmp_path)))).skeleton()
    assert policy.footprint().trained == 4 * 2 * (32 + 32)


def test_layers_without_an_effect_are_not_started(tiny: Callable[[str], Path], tmp_path: Path):
    """DDP would wait for their gradients."""
    family = FAMILIES["qwen_image"]
    network = family.load(tiny("qwen_image")).transformer
    made, last = Made(network), len(network.transformer_blocks) - 1
    for layer in (f"transformer_blocks.{last}.attn.to_add_out", f"transformer_blocks.{last}.attn.to_q"):
        made.plain(layer, 1.0)
    policy = start(tiny("qwen_image"), made.save(tmp_path), "qwen_image")
    assert {n.split(".attn.")[1].split(".")[0] for n, p in policy.named_parameters() if p.requires_grad} == {"to_q"}


def test_a_start_that_cannot_train_is_refused(sd3_folder: Path, tmp_path: Path):
    made = Made(FAMILIES["sd3"].load(sd3_folder).transformer)
    made.plain("transformer_blocks.0.attn.to_k", 1.0)
    made.tensors["transformer.transformer_blocks.0.attn.to_k.lora_magnitude_vector"] = torch.ones(32)
    with pytest.raises(GuardlitError, match=r"lora.start=.* is a LoRA with magnitudes \(DoRA\) or biases"):
        start(sd3_folder, made.save(tmp_path / "dora"))
    with pytest.raises(GuardlitError, match="nowhere is no LoRA: it must be a safetensors file, or a folder with one"):
        start(sd3_folder, tmp_path / "nowhere")
    with pytest.raises(GuardlitError, match=r"lora\.targets and lora\.start=x: omit targets"):
        LoRA(targets=("attn.to_q",), start="x")


def test_a_run_starts_from_a_lora_and_resumes(tmp_path: Path):
    """With a learning rate of 0 it exports what it started from; the configuration's own rank does not matter."""
    config = Path(__file__).parents[2] / "configs/tiny_digits.yaml"
    policy = SD3Policy("guardlit://digits", 32, LoRA(4, 8), max_sequence_length=8, cache=None)
    policy.load()
    disturb(policy)
    policy.export(tmp_path / "start")
    small = (
        "--data.prompts_per_round",
        2,
        "--data.images_per_prompt",
        4,
        "--data.micro_batch",
        9,
        "--data.val",
        "null",
    )
    quick = ("--trainer.accelerator", "cpu", "--trainer.callbacks", '["guardlit.training.export.ExportAtEnd"]')
    still = ("--model.optimizer.lr", 0, "--model.policy.lora.start", tmp_path / "start")
    run = ("fit", "--config", config, *small, *quick, *still, "--trainer.default_root_dir", tmp_path / "run")
    assert guardlit(*run, "--trainer.max_epochs", 1) == 0
    assert guardlit(*run, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 0
    started = load_file(tmp_path / "start" / FILE)
    exported = [load_file(file) for file in (tmp_path / "run").glob(f"version_*/export/raw/{FILE}")]
    assert len(exported) == 2
    for tensors in exported:
        assert tensors.keys() == started.keys()
        assert all(torch.equal(tensor, started[key]) for key, tensor in tensors.items())
