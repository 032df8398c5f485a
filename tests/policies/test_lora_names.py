"""LoRA files with the layer names of the models' original repositories, whose fused layers are split exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from lora_files import RANK, Made, check
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies import DiffusersPolicy


@pytest.fixture(scope="module")
def sd3(tiny: Callable[[str], Path]) -> DiffusersPolicy:
    return FAMILIES["sd3"].load(tiny("sd3"))


@pytest.fixture(scope="module")
def flux(tiny: Callable[[str], Path]) -> DiffusersPolicy:
    return FAMILIES["flux"].load(tiny("flux"))


def _original(made: Made, key: str, inputs: tuple[int, ...], outputs: int, scale: float, kohya: bool) -> Tensor:
    """Put one layer under its original name into the file; returns scale B A, (outputs, *inputs) float64."""
    down, up = made.pair(key, math.prod(inputs), outputs)
    name = f"lora_unet_{key.replace('.', '_')}" if kohya else f"diffusion_model.{key}"
    ones = (1,) * (len(inputs) - 1)
    made.put(
        name, down.reshape(RANK, *inputs), up.reshape(outputs, RANK, *ones), "lora_down lora_up",
        alpha=torch.tensor(scale * RANK),
    )  # fmt: skip
    return (scale * up.double() @ down.double()).reshape(outputs, *inputs)


SD3_ORIGINAL = {
    **{f"joint_blocks.{i}.{s}_block.attn.qkv": ((32,), 96) for i in (0, 1) for s in ("x", "context")},
    "joint_blocks.0.x_block.attn2.qkv": ((32,), 96),
    "joint_blocks.0.x_block.attn2.proj": ((32,), 32),
    **{
        f"joint_blocks.{i}.{s}.attn.proj": ((32,), 32)
        for i, s in ((0, "x_block"), (0, "context_block"), (1, "x_block"))
    },
    **{
        f"joint_blocks.{i}.{s}.mlp.fc1": ((32,), 128) for i, s in ((0, "x_block"), (0, "context_block"), (1, "x_block"))
    },
    **{
        f"joint_blocks.{i}.{s}.mlp.fc2": ((128,), 32) for i, s in ((0, "x_block"), (0, "context_block"), (1, "x_block"))
    },
    "joint_blocks.0.x_block.adaLN_modulation.1": ((32,), 9 * 32),
    "joint_blocks.1.x_block.adaLN_modulation.1": ((32,), 6 * 32),
    "joint_blocks.0.context_block.adaLN_modulation.1": ((32,), 6 * 32),
    "joint_blocks.1.context_block.adaLN_modulation.1": ((32,), 2 * 32),
    "final_layer.adaLN_modulation.1": ((32,), 2 * 32),
    "final_layer.linear": ((32,), 64),
    "context_embedder": ((32,), 32),
    "x_embedder.proj": ((16, 2, 2), 32),
    "t_embedder.mlp.0": ((256,), 32),
    "t_embedder.mlp.2": ((32,), 32),
    "y_embedder.mlp.0": ((32,), 32),
    "y_embedder.mlp.2": ((32,), 32),
}


@pytest.mark.parametrize("kohya", [True, False], ids=["kohya", "ComfyUI"])
def test_original_names_of_sd3(sd3: DiffusersPolicy, tmp_path: Path, kohya: bool):
    """Fused rows go where diffusers' own converter of complete checkpoints puts them."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    made = Made(sd3.transformer)
    changes = {f"{k}.weight": _original(made, k, *sizes, 0.5, kohya) for k, sizes in SD3_ORIGINAL.items()}
    biases = {f"{k}.bias": torch.zeros(rows) for k, (_, rows) in SD3_ORIGINAL.items()}
    heads = {
        k: torch.zeros(16) for i in (0, 1) for s in ("x", "context") for k in _norms(f"joint_blocks.{i}.{s}_block.attn")
    }
    heads |= {k: torch.zeros(16) for k in _norms("joint_blocks.0.x_block.attn2")}
    converted = convert_sd3_transformer_checkpoint_to_diffusers(
        {**changes, **biases, **heads, "pos_embed": torch.zeros(1)}
    )
    for name, change in converted.items():
        if bool(change.any()):
            layer = name.removesuffix(".weight")
            made.weights[layer] = made.weight(layer) + change
    assert len(made.weights) == 37
    check(sd3, made, made.save(tmp_path))


def _norms(attention: str) -> list[str]:
    return [f"{attention}.ln_{half}.weight" for half in "qk"]


@pytest.mark.parametrize("kohya", [True, False], ids=["kohya", "ComfyUI"])
def test_original_names_of_flux(flux: DiffusersPolicy, tmp_path: Path, kohya: bool):
    """Fused rows in the order of the original code: q, k, v, then the feed-forward; shift before scale at the end."""
    made = Made(flux.transformer)
    block, single = "transformer_blocks.0", "single_transformer_blocks.0"
    for key, targets in {
        "double_blocks.0.img_attn.qkv": [f"{block}.attn.to_{x}" for x in "qkv"],
        "double_blocks.0.txt_attn.qkv": [f"{block}.attn.add_{x}_proj" for x in "qkv"],
        "single_blocks.0.linear1": [*(f"{single}.attn.to_{x}" for x in "qkv"), f"{single}.proj_mlp"],
        "double_blocks.0.img_attn.proj": [f"{block}.attn.to_out.0"],
        "double_blocks.0.txt_attn.proj": [f"{block}.attn.to_add_out"],
        "double_blocks.0.img_mlp.0": [f"{block}.ff.net.0.proj"],
        "double_blocks.0.txt_mlp.2": [f"{block}.ff_context.net.2"],
        "double_blocks.0.img_mod.lin": [f"{block}.norm1.linear"],
        "double_blocks.0.txt_mod.lin": [f"{block}.norm1_context.linear"],
        "single_blocks.0.linear2": [f"{single}.proj_out"],
        "single_blocks.0.modulation.lin": [f"{single}.norm.linear"],
        "img_in": ["x_embedder"],
        "txt_in": ["context_embedder"],
        "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
        "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
        "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
        "final_layer.linear": ["proj_out"],
        "final_layer.adaLN_modulation.1": ["norm_out.linear"],
    }.items():
        sizes = [len(made.weight(target)) for target in targets]
        change = _original(made, key, (made.weight(targets[0]).shape[1],), sum(sizes), 2.0, kohya)
        if key.startswith("final_layer.ada"):
            change = torch.cat([change[32:], change[:32]])
        for target, part in zip(targets, change.split(sizes), strict=True):
            made.weights[target] = made.weight(target) + part
    check(flux, made, made.save(tmp_path))


def test_peft_keys_of_original_names_with_dora(flux: DiffusersPolicy, tmp_path: Path):
    """A magnitude's rows are split as those of B."""
    made = Made(flux.transformer)
    key = "double_blocks.0.img_attn.qkv"
    down, up = made.pair(key, 32, 96)
    magnitude = torch.linspace(0.5, 2, 96)
    made.put(f"base_model.model.{key}", down, up, lora_magnitude_vector=magnitude)
    for k, name in enumerate("qkv"):
        layer, rows = f"transformer_blocks.0.attn.to_{name}", slice(32 * k, 32 * k + 32)
        made.expect(layer, down, up[rows], 1.0)
        total = made.weights[layer]
        made.weights[layer] = magnitude[rows].double()[:, None] * total / total.norm(dim=1, keepdim=True)
    check(flux, made, made.save(tmp_path))


def test_xlabs(flux: DiffusersPolicy, tmp_path: Path):
    made = Made(flux.transformer)
    down, up = made.pair("qkv", 32, 96)
    made.put("double_blocks.0.processor.qkv_lora2", down, up, "down up")
    for k, name in enumerate("qkv"):
        made.expect(f"transformer_blocks.0.attn.add_{name}_proj", down, up[32 * k : 32 * k + 32], 1.0)
    check(flux, made, made.save(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_layers_share_a_name(family: str, tiny: Callable[[str], Path]):
    """Dots and underscores count as equal."""
    from guardlit.policies.weights.lora_layers import Layers, _base_layers, _flat

    network = FAMILIES[family].load(tiny(family)).transformer
    names = list(_base_layers(network))
    assert len({_flat(name) for name in names}) == len(names)
    places = Layers(network)
    assert all(places.find(name, name)[0].name == name for name in names)


@pytest.mark.parametrize(
    ("name", "inputs", "says"),
    [
        ("transformer.x_embedder", 128, r"has shape \(4, 128\), and layer x_embedder takes \(4, 64\)"),
        (
            "lora_unet_double_blocks_9_img_attn_qkv",
            32,
            "is for block 9 of double_blocks, and this Flux.* has 1: a LoRA",
        ),
        ("lora_unet_single_blocks_1_linear2", 160, "is for block 1 of single_blocks, and this Flux.* has 1: a LoRA of"),
        ("lora_unet_final_layer_linear2", 32, "has no place in this FluxTransformer2DModel"),
    ],
)
def test_a_lora_of_another_flux_is_refused(flux: DiffusersPolicy, tmp_path: Path, name: str, inputs: int, says: str):
    """A control LoRA, a deeper model's, and another model's."""
    made = Made(flux.transformer)
    made.put(name, *made.pair(name, inputs, 32))
    with pytest.raises(GuardlitError, match=f"'{name}.lora_A.weight' {says}"):
        flux.exported(made.save(tmp_path)).__enter__()
