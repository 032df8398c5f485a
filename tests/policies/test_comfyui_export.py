"""A LoRA for ComfyUI: names, shapes, alphas, and the change of every weight in the original layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from original_layouts import layers_of, load_as_comfyui, to_diffusers, to_original
from safetensors.torch import load_file
from torch import Tensor, nn
from velocities import disturb, velocity

from guardlit.errors import GuardlitError
from guardlit.policies import DiffusersPolicy, LoRA
from guardlit.policies.exports.comfyui import comfyui_state
from guardlit.policies.weights.lora import trained_layers
from guardlit.policies.weights.lora_reading import read_lora
from guardlit.policies.weights.lora_writing import Adapter

FILE = "comfyui_lora.safetensors"
ORIGINAL = ["sd3", "flux"]


def trained(family: str, folder: Path, lora: LoRA) -> DiffusersPolicy:
    policy = FAMILIES[family].load(folder, lora=lora)
    disturb(policy)
    return policy


def every_layer(family: str, folder: Path) -> tuple[str, ...]:
    """All linear layers, the modulations with exchanged halves among them."""
    network = FAMILIES[family].load(folder).transformer
    names = (name.replace(".base_layer", "") for name, m in network.named_modules() if isinstance(m, nn.Linear))
    return tuple(name for name in names if ".lora_" not in name)


def changes(policy: DiffusersPolicy) -> dict[str, Tensor]:
    """scale B A of each trained layer."""
    return {
        name: layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
        for name, layer in trained_layers(policy.transformer).items()
    }


def plain_state(policy: DiffusersPolicy) -> dict[str, Tensor]:
    """The base's weights under diffusers' names."""
    state = policy.transformer.state_dict()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}


@pytest.mark.parametrize("lora", [LoRA(4, 8), LoRA(3, 7)], ids=["scale 2", "scale 7/3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_back_is_what_was_trained(family: str, lora: LoRA, tiny: Callable[[str], Path], tmp_path: Path):
    """Exactly: alpha stands in the file as it was trained, and B is not multiplied."""
    policy = trained(family, tiny(family), lora)
    policy.export(tmp_path, "comfyui")
    tensors = load_file(tmp_path / FILE)
    layers = trained_layers(policy.transformer)
    parts = ("lora_A.weight", "lora_B.weight", "alpha")
    assert tensors.keys() == {f"transformer.{name}.{part}" for name in layers for part in parts}
    for name, layer in layers.items():
        down, up, alpha = (tensors[f"transformer.{name}.{part}"] for part in parts)
        assert (down.shape, up.shape) == ((lora.rank, layer.in_features), (layer.out_features, lora.rank))
        assert (alpha.shape, alpha.item()) == ((), lora.alpha)
    read = read_lora(tmp_path, FAMILIES[family].load(tiny(family)).transformer)
    for name, change in changes(policy).items():
        assert torch.equal(read[name].scale * (read[name].up @ read[name].down), change), name


@pytest.mark.parametrize("family", ORIGINAL)
def test_the_layout_of_these_tests_is_the_original_one(family: str, tiny: Callable[[str], Path]):
    """diffusers' conversion of original checkpoints gives the network back, bit for bit."""
    network = FAMILIES[family].pipeline(tiny(family)).transformer
    state = network.state_dict()
    found = to_diffusers(network, to_original(network, state))
    assert found.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.items())


@pytest.mark.parametrize("family", ORIGINAL)
def test_comfyui_changes_every_original_weight_as_training_did(
    family: str, tiny: Callable[[str], Path], tmp_path: Path
):
    """Also of fused q, k and v, of which each has its rows, and of the modulations whose halves are exchanged."""
    folder = tiny(family)
    policy = trained(family, folder, LoRA(4, 8, targets=every_layer(family, folder)))
    policy.export(tmp_path, "comfyui")
    network, state = FAMILIES[family].pipeline(folder).transformer, plain_state(policy)
    added = changes(policy)
    assert {"norm_out.linear", "proj_out"} < added.keys() <= layers_of(network).keys()
    merged = load_as_comfyui(network, to_original(network, state), load_file(tmp_path / FILE))
    found = to_diffusers(network, merged)
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        expected = tensor + added[layer] if name.endswith(".weight") and layer in added else tensor
        torch.testing.assert_close(found[name], expected, rtol=1e-6, atol=1e-6, msg=name)
        assert torch.equal(found[name], tensor) == (expected is tensor)


def in_diffusers(family: str, folder: Path, lora: Path, policy: DiffusersPolicy) -> Tensor:
    pipe = FAMILIES[family].pipeline(folder)
    pipe.load_lora_weights(lora, weight_name=FILE)
    own, policy.transformer = policy.transformer, pipe.transformer.eval()
    try:
        return velocity(policy)
    finally:
        policy.transformer = own


def test_diffusers_reads_the_file_of_flux_at_the_same_scale(tiny: Callable[[str], Path], tmp_path: Path):
    policy = trained("flux", tiny("flux"), LoRA(3, 7))
    policy.export(tmp_path, "comfyui")
    with torch.no_grad():
        torch.testing.assert_close(in_diffusers("flux", tiny("flux"), tmp_path, policy), velocity(policy))


def test_diffusers_refuses_the_file_of_sd3(tiny: Callable[[str], Path], tmp_path: Path):
    """And does not apply it without its alpha; docs/export.md says so."""
    policy = trained("sd3", tiny("sd3"), LoRA(3, 7))
    policy.export(tmp_path, "comfyui")
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        in_diffusers("sd3", tiny("sd3"), tmp_path, policy)


@pytest.mark.parametrize("family", FAMILIES)
def test_guardlit_draws_with_the_file(family: str, tiny: Callable[[str], Path], tmp_path: Path):
    policy = trained(family, tiny(family), LoRA(4, 8))
    policy.export(tmp_path, "comfyui")
    plain = FAMILIES[family].load(tiny(family))
    with torch.no_grad(), plain.exported(tmp_path):
        torch.testing.assert_close(velocity(plain), velocity(policy), rtol=1e-5, atol=1e-5)


def test_layers_and_families_that_comfyui_does_not_know_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    weights: dict[str, Any] = {}
    adapter = Adapter(weights, {"time_guidance_embed.timestep_embedder.linear_1": 4}, {})
    with pytest.raises(GuardlitError, match=r"ComfyUI knows no name of 'time_guidance.*'; use --to diffusers"):
        comfyui_state(adapter, "Flux2Transformer2DModel")
    policy = trained("sd3", tiny("sd3"), LoRA(4, 8))
    monkeypatch.setattr(type(policy), "transformer_class", "AuraFlowTransformer2DModel")
    with pytest.raises(GuardlitError, match="names of SD3, Flux, Flux2, QwenImage, not of AuraFlowTransformer2DModel"):
        policy.export(tmp_path / "x", "comfyui")
    assert not (tmp_path / "x").exists()
