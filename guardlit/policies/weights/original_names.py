"""Layer names in the repositories that models were published in, which kohya's and ComfyUI's LoRAs use.

Several diffusers layers stand for one original layer whose rows they share, in this order. diffusers has a converter
of LoRA files for FLUX.1, which drops layers outside the blocks and leaves alpha out of the last one, and none for SD3.
`{i}` is a block's number.
"""

from __future__ import annotations

from collections.abc import Mapping

Names = Mapping[str, tuple[str, ...]]


def _attention(block: str, original: str, normal: str) -> dict[str, tuple[str, ...]]:
    query, key, value, out = {
        "image": ("to_q", "to_k", "to_v", "to_out.0"),
        "text": ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    }[normal]
    attn = f"{block}.{'attn2' if original.endswith('attn2') else 'attn'}"
    return {
        f"{original}.qkv": (f"{attn}.{query}", f"{attn}.{key}", f"{attn}.{value}"),
        f"{original}.proj": (f"{attn}.{out}",),
    }


def _embedder(original: str, first: str, second: str, name: str) -> dict[str, tuple[str, ...]]:
    return {f"{original}.{first}": (f"{name}.linear_1",), f"{original}.{second}": (f"{name}.linear_2",)}


_BLOCK, _SINGLE = "transformer_blocks.{i}", "single_transformer_blocks.{i}"
_SD3_IMAGE, _SD3_TEXT = "joint_blocks.{i}.x_block", "joint_blocks.{i}.context_block"
_DOUBLE = "double_blocks.{i}"
_LAST = {"final_layer.linear": ("proj_out",), "final_layer.adaLN_modulation.1": ("norm_out.linear",)}

_SD3: Names = {
    **_attention(_BLOCK, f"{_SD3_IMAGE}.attn", "image"),
    **_attention(_BLOCK, f"{_SD3_IMAGE}.attn2", "image"),
    **_attention(_BLOCK, f"{_SD3_TEXT}.attn", "text"),
    f"{_SD3_IMAGE}.mlp.fc1": (f"{_BLOCK}.ff.net.0.proj",),
    f"{_SD3_IMAGE}.mlp.fc2": (f"{_BLOCK}.ff.net.2",),
    f"{_SD3_TEXT}.mlp.fc1": (f"{_BLOCK}.ff_context.net.0.proj",),
    f"{_SD3_TEXT}.mlp.fc2": (f"{_BLOCK}.ff_context.net.2",),
    f"{_SD3_IMAGE}.adaLN_modulation.1": (f"{_BLOCK}.norm1.linear",),
    f"{_SD3_TEXT}.adaLN_modulation.1": (f"{_BLOCK}.norm1_context.linear",),
    "x_embedder.proj": ("pos_embed.proj",),
    **_embedder("t_embedder", "mlp.0", "mlp.2", "time_text_embed.timestep_embedder"),
    **_embedder("y_embedder", "mlp.0", "mlp.2", "time_text_embed.text_embedder"),
    **_LAST,
}

_DOUBLE_ATTENTION: Names = {
    **_attention(_BLOCK, f"{_DOUBLE}.img_attn", "image"),
    **_attention(_BLOCK, f"{_DOUBLE}.txt_attn", "text"),
}
_FLUX_INPUTS: Names = {"img_in": ("x_embedder",), "txt_in": ("context_embedder",)}
_SINGLE_QKV = (f"{_SINGLE}.attn.to_q", f"{_SINGLE}.attn.to_k", f"{_SINGLE}.attn.to_v")

_FLUX: Names = {
    **_DOUBLE_ATTENTION,
    **_FLUX_INPUTS,
    f"{_DOUBLE}.img_mlp.0": (f"{_BLOCK}.ff.net.0.proj",),
    f"{_DOUBLE}.img_mlp.2": (f"{_BLOCK}.ff.net.2",),
    f"{_DOUBLE}.txt_mlp.0": (f"{_BLOCK}.ff_context.net.0.proj",),
    f"{_DOUBLE}.txt_mlp.2": (f"{_BLOCK}.ff_context.net.2",),
    f"{_DOUBLE}.img_mod.lin": (f"{_BLOCK}.norm1.linear",),
    f"{_DOUBLE}.txt_mod.lin": (f"{_BLOCK}.norm1_context.linear",),
    "single_blocks.{i}.linear1": (*_SINGLE_QKV, f"{_SINGLE}.proj_mlp"),
    "single_blocks.{i}.linear2": (f"{_SINGLE}.proj_out",),
    "single_blocks.{i}.modulation.lin": (f"{_SINGLE}.norm.linear",),
    **_embedder("time_in", "in_layer", "out_layer", "time_text_embed.timestep_embedder"),
    **_embedder("vector_in", "in_layer", "out_layer", "time_text_embed.text_embedder"),
    **_embedder("guidance_in", "in_layer", "out_layer", "time_text_embed.guidance_embedder"),
    **_LAST,
    # XLabs'
    f"{_DOUBLE}.processor.qkv_lora1": _DOUBLE_ATTENTION[f"{_DOUBLE}.img_attn.qkv"],
    f"{_DOUBLE}.processor.qkv_lora2": _DOUBLE_ATTENTION[f"{_DOUBLE}.txt_attn.qkv"],
    f"{_DOUBLE}.processor.proj_lora1": _DOUBLE_ATTENTION[f"{_DOUBLE}.img_attn.proj"],
    f"{_DOUBLE}.processor.proj_lora2": _DOUBLE_ATTENTION[f"{_DOUBLE}.txt_attn.proj"],
    "single_blocks.{i}.processor.qkv_lora": _SINGLE_QKV,
    "single_blocks.{i}.processor.proj_lora": (f"{_SINGLE}.proj_out",),
}

_FLUX2: Names = {
    **_DOUBLE_ATTENTION,
    **_FLUX_INPUTS,
    f"{_DOUBLE}.img_mlp.0": (f"{_BLOCK}.ff.linear_in",),
    f"{_DOUBLE}.img_mlp.2": (f"{_BLOCK}.ff.linear_out",),
    f"{_DOUBLE}.txt_mlp.0": (f"{_BLOCK}.ff_context.linear_in",),
    f"{_DOUBLE}.txt_mlp.2": (f"{_BLOCK}.ff_context.linear_out",),
    "single_blocks.{i}.linear1": (f"{_SINGLE}.attn.to_qkv_mlp_proj",),
    "single_blocks.{i}.linear2": (f"{_SINGLE}.attn.to_out",),
    "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
    "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    **_embedder("time_in", "in_layer", "out_layer", "time_guidance_embed.timestep_embedder"),
    **_embedder("guidance_in", "in_layer", "out_layer", "time_guidance_embed.guidance_embedder"),
    **_LAST,
}

ORIGINAL_NAMES: Mapping[str, Names] = {
    "SD3Transformer2DModel": _SD3,
    "FluxTransformer2DModel": _FLUX,
    "Flux2Transformer2DModel": _FLUX2,
}
"""By the transformer's class; other families have diffusers' names everywhere."""
