"""SD3 and FLUX.1 in the layout of their original repositories, as ComfyUI holds them, and what it does with a LoRA.

Written out from the models' published files and from what ComfyUI's loader does, without guardlit's own tables; the
conversion functions of diffusers show that the layout is right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.loaders import single_file_utils
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Where a diffusers layer is: some rows of an original layer, maybe with the halves exchanged."""

    layer: str
    part: int = 0
    swapped: bool = False


def sd3_layers(blocks: int, dual: tuple[int, ...]) -> dict[str, Rows]:
    """Every layer with weights of an SD3 network, by its name in diffusers."""
    found = {
        "pos_embed.proj": Rows("x_embedder.proj"),
        "context_embedder": Rows("context_embedder"),
        "time_text_embed.timestep_embedder.linear_1": Rows("t_embedder.mlp.0"),
        "time_text_embed.timestep_embedder.linear_2": Rows("t_embedder.mlp.2"),
        "time_text_embed.text_embedder.linear_1": Rows("y_embedder.mlp.0"),
        "time_text_embed.text_embedder.linear_2": Rows("y_embedder.mlp.2"),
        "norm_out.linear": Rows("final_layer.adaLN_modulation.1", swapped=True),
        "proj_out": Rows("final_layer.linear"),
    }
    for i in range(blocks):
        image, text, block = f"joint_blocks.{i}.x_block", f"joint_blocks.{i}.context_block", f"transformer_blocks.{i}"
        last = i == blocks - 1
        found |= {f"{block}.attn.to_{name}": Rows(f"{image}.attn.qkv", k) for k, name in enumerate("qkv")}
        found |= {f"{block}.attn.add_{name}_proj": Rows(f"{text}.attn.qkv", k) for k, name in enumerate("qkv")}
        found |= {
            f"{block}.attn.to_out.0": Rows(f"{image}.attn.proj"),
            f"{block}.attn.norm_q": Rows(f"{image}.attn.ln_q"),
            f"{block}.attn.norm_k": Rows(f"{image}.attn.ln_k"),
            f"{block}.attn.norm_added_q": Rows(f"{text}.attn.ln_q"),
            f"{block}.attn.norm_added_k": Rows(f"{text}.attn.ln_k"),
            f"{block}.norm1.linear": Rows(f"{image}.adaLN_modulation.1"),
            f"{block}.norm1_context.linear": Rows(f"{text}.adaLN_modulation.1", swapped=last),
            f"{block}.ff.net.0.proj": Rows(f"{image}.mlp.fc1"),
            f"{block}.ff.net.2": Rows(f"{image}.mlp.fc2"),
        }
        if i in dual:
            found |= {f"{block}.attn2.to_{name}": Rows(f"{image}.attn2.qkv", k) for k, name in enumerate("qkv")}
            found |= {
                f"{block}.attn2.to_out.0": Rows(f"{image}.attn2.proj"),
                f"{block}.attn2.norm_q": Rows(f"{image}.attn2.ln_q"),
                f"{block}.attn2.norm_k": Rows(f"{image}.attn2.ln_k"),
            }
        if not last:
            found |= {
                f"{block}.attn.to_add_out": Rows(f"{text}.attn.proj"),
                f"{block}.ff_context.net.0.proj": Rows(f"{text}.mlp.fc1"),
                f"{block}.ff_context.net.2": Rows(f"{text}.mlp.fc2"),
            }
    return found


def flux_layers(blocks: int, singles: int) -> dict[str, Rows]:
    """Every layer with weights of a FLUX.1 network, by its name in diffusers."""
    found = {
        "x_embedder": Rows("img_in"),
        "context_embedder": Rows("txt_in"),
        "norm_out.linear": Rows("final_layer.adaLN_modulation.1", swapped=True),
        "proj_out": Rows("final_layer.linear"),
    }
    for name, original in (("timestep", "time_in"), ("text", "vector_in"), ("guidance", "guidance_in")):
        found[f"time_text_embed.{name}_embedder.linear_1"] = Rows(f"{original}.in_layer")
        found[f"time_text_embed.{name}_embedder.linear_2"] = Rows(f"{original}.out_layer")
    for i in range(blocks):
        block, double = f"transformer_blocks.{i}", f"double_blocks.{i}"
        found |= {f"{block}.attn.to_{name}": Rows(f"{double}.img_attn.qkv", k) for k, name in enumerate("qkv")}
        found |= {f"{block}.attn.add_{name}_proj": Rows(f"{double}.txt_attn.qkv", k) for k, name in enumerate("qkv")}
        found |= {
            f"{block}.attn.to_out.0": Rows(f"{double}.img_attn.proj"),
            f"{block}.attn.to_add_out": Rows(f"{double}.txt_attn.proj"),
            f"{block}.attn.norm_q": Rows(f"{double}.img_attn.norm.query_norm"),
            f"{block}.attn.norm_k": Rows(f"{double}.img_attn.norm.key_norm"),
            f"{block}.attn.norm_added_q": Rows(f"{double}.txt_attn.norm.query_norm"),
            f"{block}.attn.norm_added_k": Rows(f"{double}.txt_attn.norm.key_norm"),
            f"{block}.norm1.linear": Rows(f"{double}.img_mod.lin"),
            f"{block}.norm1_context.linear": Rows(f"{double}.txt_mod.lin"),
            f"{block}.ff.net.0.proj": Rows(f"{double}.img_mlp.0"),
            f"{block}.ff.net.2": Rows(f"{double}.img_mlp.2"),
            f"{block}.ff_context.net.0.proj": Rows(f"{double}.txt_mlp.0"),
            f"{block}.ff_context.net.2": Rows(f"{double}.txt_mlp.2"),
        }
    for i in range(singles):
        block, single = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        found |= {f"{block}.attn.to_{name}": Rows(f"{single}.linear1", k) for k, name in enumerate("qkv")}
        found |= {
            f"{block}.proj_mlp": Rows(f"{single}.linear1", 3),
            f"{block}.proj_out": Rows(f"{single}.linear2"),
            f"{block}.attn.norm_q": Rows(f"{single}.norm.query_norm"),
            f"{block}.attn.norm_k": Rows(f"{single}.norm.key_norm"),
            f"{block}.norm.linear": Rows(f"{single}.modulation.lin"),
        }
    return found


def layers_of(network: Any) -> dict[str, Rows]:
    """The layers of a tiny SD3 or FLUX network."""
    config = network.config
    if type(network).__name__.startswith("SD3"):
        return sd3_layers(config.num_layers, tuple(config.dual_attention_layers))
    return flux_layers(config.num_layers, config.num_single_layers)


def _end(original: str, end: str) -> str:
    """FLUX's norms call their weight a scale."""
    return "scale" if end == "weight" and original.endswith(("query_norm", "key_norm")) else end


def to_original(network: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a diffusers network in the original layout."""
    parts: dict[str, dict[int, Tensor]] = {}
    for name, rows in layers_of(network).items():
        for end in ("weight", "bias"):
            if (tensor := state.get(f"{name}.{end}")) is not None:
                part = torch.cat(tensor.chunk(2)[::-1]) if rows.swapped else tensor
                parts.setdefault(f"{rows.layer}.{_end(rows.layer, end)}", {})[rows.part] = part
    found = {key: torch.cat([rows[i] for i in sorted(rows)]) for key, rows in parts.items()}
    return found | ({"pos_embed": state["pos_embed.pos_embed"]} if "pos_embed.pos_embed" in state else {})


def to_diffusers(network: Any, original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in diffusers' layout, by diffusers' own conversion; FLUX's has the width of the published model."""
    if type(network).__name__.startswith("SD3"):
        return single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(dict(original))
    source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
    tiny = source.replace("inner_dim = 3072", f"inner_dim = {network.inner_dim}")
    assert tiny != source
    names = dict(vars(single_file_utils))
    exec(tiny, names)
    convert: Callable[..., dict[str, Tensor]] = names["convert_flux_transformer_checkpoint_to_diffusers"]
    return convert(dict(original))


def load_as_comfyui(network: Any, original: Mapping[str, Tensor], lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original weights with a LoRA added as ComfyUI adds it; every tensor of the file must have a place.

    ComfyUI knows a layer as `transformer.` and its diffusers name, takes `lora_A` and `lora_B`, multiplies by
    alpha / rank, 1 without alpha, and adds to the layer's rows; halves are exchanged where the layouts differ.
    """
    weights, left = {key: tensor.clone() for key, tensor in original.items()}, dict(lora)
    state = network.state_dict()
    for name, rows in layers_of(network).items():
        key = f"transformer.{name}"
        if f"{key}.lora_A.weight" not in left:
            continue
        down, up = left.pop(f"{key}.lora_A.weight"), left.pop(f"{key}.lora_B.weight")
        alpha = left.pop(f"{key}.alpha", None)
        scale = 1.0 if alpha is None else alpha.item() / len(down)
        change = scale * (up.flatten(1) @ down.flatten(1))
        target = weights[f"{rows.layer}.weight"]
        size = len(state[f"{name}.weight"])
        start = rows.part * (size if rows.part < 3 else (len(target) - size) // 3)
        place = target.narrow(0, start, size)
        place += (torch.cat(change.chunk(2)[::-1]) if rows.swapped else change).reshape(place.shape)
    assert left == {}, f"ComfyUI: lora key not loaded: {sorted(left)[:3]}"
    return weights
