"""A LoRA folder for peft: rank, alpha, layers and patterns are those of the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from families import FAMILIES
from lora_files import Made
from peft import PeftModel
from velocities import disturb, velocity

from guardlit.errors import GuardlitError
from guardlit.policies import DiffusersPolicy, LoRA
from guardlit.policies.weights.lora import trained_layers


def in_peft(policy: DiffusersPolicy, folder: Path, lora: Path) -> torch.Tensor:
    """The velocity of the network that peft adapts, with nothing of guardlit's."""
    kind = getattr(diffusers, policy.transformer_class)
    network = PeftModel.from_pretrained(kind.from_pretrained(folder, subfolder="transformer"), lora)
    own, policy.transformer = policy.transformer, network.get_base_model().eval()
    try:
        assert trained_layers(policy.transformer).keys() == trained_layers(own).keys()
        return velocity(policy)
    finally:
        policy.transformer = own


@pytest.mark.parametrize("lora", [LoRA(4, 8), LoRA(3, 7)], ids=["scale 2", "scale 7/3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_was_trained(family: str, lora: LoRA, tiny: Callable[[str], Path], tmp_path: Path):
    policy = FAMILIES[family].load(tiny(family), lora=lora)
    disturb(policy)
    policy.export(tmp_path, "peft")
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (lora.rank, lora.alpha, False)
    assert (settings["rank_pattern"], settings["alpha_pattern"], settings["peft_type"]) == ({}, {}, "LORA")
    assert settings["base_model_name_or_path"] is None  # and not this machine's folder
    with torch.no_grad():
        torch.testing.assert_close(in_peft(policy, tiny(family), tmp_path), velocity(policy), rtol=1e-5, atol=1e-5)
        plain = FAMILIES[family].load(tiny(family))
        with plain.exported(tmp_path):
            torch.testing.assert_close(velocity(plain), velocity(policy), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("to", ["peft", "comfyui", "diffusers"])
def test_layers_keep_their_own_ranks_and_alphas(to: str, tiny: Callable[[str], Path], tmp_path: Path):
    """Of a LoRA that training started from; `proj_out` is also the end of another layer's name."""
    folder = tiny("flux")
    made = Made(FAMILIES["flux"].load(folder).transformer)
    made.plain("transformer_blocks.0.attn.to_k", 2.0, rank=2, alpha=torch.tensor(4.0))
    made.plain("transformer_blocks.0.norm1.linear", 0.5, rank=6, alpha=torch.tensor(3.0))
    made.plain("single_transformer_blocks.0.proj_out", 2.0, rank=2, alpha=torch.tensor(4.0))
    made.plain("proj_out", 1.5, rank=4, alpha=torch.tensor(6.0))
    policy = FAMILIES["flux"].load(folder, lora=LoRA(start=str(made.save(tmp_path / "theirs"))))
    disturb(policy)
    policy.export(tmp_path / "ours", to)
    with torch.no_grad():
        expected = velocity(policy)
        if to == "peft":
            torch.testing.assert_close(in_peft(policy, folder, tmp_path / "ours"), expected, rtol=1e-5, atol=1e-5)
        plain = FAMILIES["flux"].load(folder)
        with plain.exported(tmp_path / "ours"):
            torch.testing.assert_close(velocity(plain), expected, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(velocity(plain), in_base(plain), rtol=1e-2, atol=1e-2)


def in_base(policy: DiffusersPolicy) -> torch.Tensor:
    with policy.using("reference"):
        return velocity(policy)


def test_a_run_in_full_has_no_lora_to_write(tiny: Callable[[str], Path], tmp_path: Path):
    policy = FAMILIES["sd3"].load(tiny("sd3"), lora=None)
    for to in ("peft", "comfyui"):
        says = f"--to {to} writes a LoRA, and this run trains the complete transformer: use --to diffusers"
        with pytest.raises(GuardlitError, match=says):
            policy.export(tmp_path, to)
    assert not list(tmp_path.iterdir())


def test_a_folder_holds_one_export(tiny: Callable[[str], Path], tmp_path: Path):
    policy = FAMILIES["sd3"].load(tiny("sd3"))
    policy.export(tmp_path, "peft")
    policy.export(tmp_path, "peft")
    with pytest.raises(GuardlitError, match=r"of another format \(adapter_model.safetensors\): name another folder"):
        policy.export(tmp_path)
