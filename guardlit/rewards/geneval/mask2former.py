"""The official Mask2Former checkpoints (mmdet 2 and 3, Swin backbone) under the names and in the order of transformers.

Both generations hold the same weights. `_RULES` maps the names. Three weights have another layout: the backbone's fused
query, key and value, the same of the decoder's self-attention, and the order of the four neighbors that a downsampling
joins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from guardlit.errors import GuardlitError

_BACKBONE = "model.pixel_level_module.encoder."
_PIXELS = "model.pixel_level_module.decoder."
_QUERIES = "model.transformer_module."

# mmdet 2 numbers a layer's attentions and feed-forward networks, mmdet 3 names them
_OLD_NAMES = (
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"(layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)

# mmdet 3's name up to `.weight` or `.bias` -> that of transformers
_BLOCK, _INTO_BLOCK = r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.", _BACKBONE + r"encoder.layers.\1.blocks.\2."
_ENCODER, _INTO_ENCODER = r"panoptic_head\.pixel_decoder\.encoder\.layers\.(\d+)\.", _PIXELS + r"encoder.layers.\1."
_DECODER, _INTO_DECODER = r"panoptic_head\.transformer_decoder\.layers\.(\d+)\.", _QUERIES + r"decoder.layers.\1."
_RULES = (
    (r"backbone\.patch_embed\.projection", _BACKBONE + "embeddings.patch_embeddings.projection"),
    (r"backbone\.patch_embed\.norm", _BACKBONE + "embeddings.norm"),
    (_BLOCK + "norm1", _INTO_BLOCK + "layernorm_before"),
    (_BLOCK + "norm2", _INTO_BLOCK + "layernorm_after"),
    (_BLOCK + r"attn\.w_msa\.qkv", _INTO_BLOCK + "attention.self.{query,key,value}"),
    (_BLOCK + r"attn\.w_msa\.proj", _INTO_BLOCK + "attention.output.dense"),
    (_BLOCK + r"attn\.w_msa\.(relative_position_bias_table)", _INTO_BLOCK + r"attention.self.\3"),
    (_BLOCK + r"ffn\.layers\.0\.0", _INTO_BLOCK + "intermediate.dense"),
    (_BLOCK + r"ffn\.layers\.1", _INTO_BLOCK + "output.dense"),
    (r"backbone\.stages\.(\d+)\.downsample\.(norm|reduction)", _BACKBONE + r"encoder.layers.\1.downsample.\2"),
    (r"backbone\.norm0", _BACKBONE + "hidden_states_norms.stage1"),
    (r"backbone\.norm1", _BACKBONE + "hidden_states_norms.stage2"),
    (r"backbone\.norm2", _BACKBONE + "hidden_states_norms.stage3"),
    (r"backbone\.norm3", _BACKBONE + "hidden_states_norms.stage4"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d)\.conv", _PIXELS + r"input_projections.\1.0"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d)\.gn", _PIXELS + r"input_projections.\1.1"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv", _PIXELS + "adapter_1.0"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn", _PIXELS + "adapter_1.1"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv", _PIXELS + "layer_1.0"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn", _PIXELS + "layer_1.1"),
    (r"panoptic_head\.pixel_decoder\.mask_feature", _PIXELS + "mask_projection"),
    (
        _ENCODER + r"self_attn\.(sampling_offsets|attention_weights|value_proj|output_proj)",
        _INTO_ENCODER + r"self_attn.\2",
    ),
    (_ENCODER + r"ffn\.layers\.0\.0", _INTO_ENCODER + "fc1"),
    (_ENCODER + r"ffn\.layers\.1", _INTO_ENCODER + "fc2"),
    (_ENCODER + r"norms\.0", _INTO_ENCODER + "self_attn_layer_norm"),
    (_ENCODER + r"norms\.1", _INTO_ENCODER + "final_layer_norm"),
    (_DECODER + r"self_attn\.attn\.in_proj_(weight|bias)", _INTO_DECODER + r"self_attn.{q_proj,k_proj,v_proj}.\2"),
    (_DECODER + r"self_attn\.attn\.out_proj", _INTO_DECODER + "self_attn.out_proj"),
    (_DECODER + r"cross_attn\.attn\.(in_proj_weight|in_proj_bias|out_proj)", _INTO_DECODER + r"cross_attn.\2"),
    (_DECODER + r"ffn\.layers\.0\.0", _INTO_DECODER + "fc1"),
    (_DECODER + r"ffn\.layers\.1", _INTO_DECODER + "fc2"),
    (_DECODER + r"norms\.0", _INTO_DECODER + "cross_attn_layer_norm"),
    (_DECODER + r"norms\.1", _INTO_DECODER + "self_attn_layer_norm"),
    (_DECODER + r"norms\.2", _INTO_DECODER + "final_layer_norm"),
    (r"panoptic_head\.transformer_decoder\.post_norm", _QUERIES + "decoder.layernorm"),
    (r"panoptic_head\.query_feat", _QUERIES + "queries_features"),
    (r"panoptic_head\.query_embed", _QUERIES + "queries_embedder"),
    (r"panoptic_head\.level_embed", _QUERIES + "level_embed"),
    (r"panoptic_head\.cls_embed", "class_predictor"),
    (r"panoptic_head\.mask_embed\.0", _QUERIES + "decoder.mask_predictor.mask_embedder.0.0"),
    (r"panoptic_head\.mask_embed\.2", _QUERIES + "decoder.mask_predictor.mask_embedder.1.0"),
    (r"panoptic_head\.mask_embed\.4", _QUERIES + "decoder.mask_predictor.mask_embedder.2.0"),
)
_LEVELS, _POINTS = 3, 4  # of the deformable attention: fixed in transformers


def in_new_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of mmdet 2 or 3 under mmdet 3's names, without the buffers of indices."""
    names = {name: name for name in state if not name.endswith("relative_position_index")}
    for pattern, replacement in _OLD_NAMES:
        names = {name: re.sub(pattern, replacement, new) for name, new in names.items()}
    return {new: state[name] for name, new in names.items()}


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as transformers' hub files hold them.

    Args:
        state: under mmdet 3's names.

    Raises:
        GuardlitError: a name that such a checkpoint does not have.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, weight in state.items():
        targets = list(_targets(name))
        if not targets:
            unknown.append(name)
        elif len(targets) > 1:
            converted |= zip(targets, (part.clone() for part in weight.chunk(len(targets))), strict=True)
        else:
            converted[targets[0]] = _reordered(weight) if ".downsample." in name else weight
    if unknown:
        raise GuardlitError(
            f"{len(unknown)} weights are not those of a Mask2Former with a Swin backbone "
            f"({', '.join(sorted(unknown)[:3])}{', ...' if len(unknown) > 3 else ''})"
        )
    return converted


def _targets(name: str) -> Iterator[str]:
    """Names in transformers; several where it splits a fused weight of mmdet."""
    if name == "panoptic_head.pixel_decoder.level_encoding.weight":
        yield _PIXELS + "level_embed"
    for pattern, target in _RULES:
        if found := re.fullmatch(rf"{pattern}(?P<kind>\.weight|\.bias)?", name):
            full = found.expand(target) + (found["kind"] or "")
            before, fused, after = full.partition("{")
            parts, _, end = after.partition("}")
            yield from [before + part + end for part in parts.split(",")] if fused else [full]


def _reordered(weight: Tensor) -> Tensor:
    """A downsampling's norm (4 C,) or reduction (2 C, 4 C), from (channel, neighbor) to (neighbor, channel).

    mmdet numbers the four neighbors by row, transformers by column.
    """
    by_neighbor = weight.reshape(*weight.shape[:-1], -1, 4).transpose(-1, -2)
    return by_neighbor[..., (0, 2, 1, 3), :].flatten(-2)


def idle(classes: int, width: int) -> dict[str, Tensor]:
    """Weights that transformers expects and mmdet lacks, since detections do not depend on them.

    Args:
        classes: number of them; the loss has a weight for each, and one for no object.
        width: channels of the backbone's last stage, which an unused norm follows.
    """
    norm = _BACKBONE + "swin.layernorm."
    loss = torch.tensor([1.0] * classes + [0.1])
    return {norm + "weight": torch.ones(width), norm + "bias": torch.zeros(width), "criterion.empty_weight": loss}


def describe(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `transformers.Mask2FormerConfig` (`backbone_config` for its `SwinConfig`) for these weights.

    Args:
        state: under mmdet 3's names.

    Raises:
        GuardlitError: a weight whose shape is needed is missing.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise GuardlitError(f"the weights {name} are missing; is this the checkpoint of a Mask2Former with Swin?")
        return state[name].shape

    def count(pattern: str) -> int:
        return len({found[1] for name in state if (found := re.match(pattern, name))})

    block, head = "backbone.stages.{}.blocks.0.", "panoptic_head."
    tables = [shape(block.format(i) + "attn.w_msa.relative_position_bias_table") for i in range(4)]
    encoder, decoder = head + "pixel_decoder.encoder.layers.", head + "transformer_decoder.layers."
    width = shape(head + "query_feat.weight")
    backbone = {
        "embed_dim": shape("backbone.patch_embed.norm.weight")[0],
        "depths": [count(rf"backbone\.stages\.{i}\.blocks\.(\d+)\.") for i in range(4)],
        "num_heads": [table[1] for table in tables],
        "window_size": (int(tables[0][0] ** 0.5) + 1) // 2,
        "mlp_ratio": shape(block.format(0) + "ffn.layers.0.0.weight")[0] / shape("backbone.norm0.weight")[0],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    return {
        "backbone_config": backbone,
        "feature_size": shape(head + "pixel_decoder.level_encoding.weight")[1],
        "mask_feature_size": shape(head + "pixel_decoder.mask_feature.weight")[0],
        "hidden_dim": width[1],
        "num_queries": width[0],
        "encoder_layers": count(re.escape(encoder) + r"(\d+)\."),
        "encoder_feedforward_dim": shape(encoder + "0.ffn.layers.0.0.weight")[0],
        "decoder_layers": count(re.escape(decoder) + r"(\d+)\.") + 1,  # transformers counts the initial queries
        "dim_feedforward": shape(decoder + "0.ffn.layers.0.0.weight")[0],
        # of both attentions; only the deformable one's weights show it
        "num_attention_heads": shape(encoder + "0.self_attn.attention_weights.weight")[0] // (_LEVELS * _POINTS),
        "num_labels": shape(head + "cls_embed.weight")[0] - 1,
    }
