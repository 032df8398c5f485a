"""A tiny Mask2Former in mmdet's layout, pictures and cases for GenEval: what reference and test both build from seeds.

Numpy's generator draws all numbers, so that the reference's environment and ours get the same ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

EMBED, DEPTHS, HEADS, WINDOW = 8, (2, 2, 1, 1), (1, 2, 2, 4), 4  # of the Swin backbone
WIDTH, QUERIES, CLASSES, ATTENTION_HEADS, LEVELS, POINTS = 32, 12, 80, 4, 3, 4
ENCODER_LAYERS, ENCODER_FFN, DECODER_LAYERS, DECODER_FFN = 1, 24, 3, 40
SIZES = ((120, 160), (97, 64), (64, 64))  # height and width of the pictures; two of them need padding

Shapes = dict[str, tuple[int, ...]]


def layout(version: int = 3) -> Shapes:
    """Names and shapes of the state dict as mmdet 2 or 3 writes it."""
    return {**_swin(), **{f"panoptic_head.{k}": v for k, v in _head(version).items()}}


def _linear(name: str, out: int, inside: int) -> Shapes:
    return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _conv(name: str, out: int, inside: int, kernel: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (out, inside, kernel, kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def _ffn(name: str, width: int, hidden: int) -> Shapes:
    return _linear(f"{name}.layers.0.0", hidden, width) | _linear(f"{name}.layers.1", width, hidden)


def _swin() -> Shapes:
    shapes = _conv("backbone.patch_embed.projection", EMBED, 3, 4, True) | _norm("backbone.patch_embed.norm", EMBED)
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        width = EMBED * 2**stage
        for i in range(depth):
            block = f"backbone.stages.{stage}.blocks.{i}"
            shapes |= _norm(f"{block}.norm1", width) | _norm(f"{block}.norm2", width)
            shapes[f"{block}.attn.w_msa.relative_position_bias_table"] = ((2 * WINDOW - 1) ** 2, heads)
            shapes[f"{block}.attn.w_msa.relative_position_index"] = (WINDOW**2, WINDOW**2)
            shapes |= _linear(f"{block}.attn.w_msa.qkv", 3 * width, width)
            shapes |= _linear(f"{block}.attn.w_msa.proj", width, width) | _ffn(f"{block}.ffn", width, 4 * width)
        if stage < len(DEPTHS) - 1:
            down = f"backbone.stages.{stage}.downsample"
            shapes |= _norm(f"{down}.norm", 4 * width) | {f"{down}.reduction.weight": (2 * width, 4 * width)}
        shapes |= _norm(f"backbone.norm{stage}", width)
    return shapes


def _head(version: int) -> Shapes:
    shapes: Shapes = {}
    for i, width in enumerate((EMBED * 8, EMBED * 4, EMBED * 2)):  # from low to high resolution
        shapes |= _conv(f"pixel_decoder.input_convs.{i}.conv", WIDTH, width, 1, True)
        shapes |= _norm(f"pixel_decoder.input_convs.{i}.gn", WIDTH)
    for i in range(ENCODER_LAYERS):
        layer = f"pixel_decoder.encoder.layers.{i}"
        attention, ffn = ("self_attn", "ffn") if version == 3 else ("attentions.0", "ffns.0")
        samples = ATTENTION_HEADS * LEVELS * POINTS
        shapes |= _linear(f"{layer}.{attention}.sampling_offsets", 2 * samples, WIDTH)
        shapes |= _linear(f"{layer}.{attention}.attention_weights", samples, WIDTH)
        shapes |= _linear(f"{layer}.{attention}.value_proj", WIDTH, WIDTH)
        shapes |= _linear(f"{layer}.{attention}.output_proj", WIDTH, WIDTH)
        shapes |= _ffn(f"{layer}.{ffn}", WIDTH, ENCODER_FFN)
        shapes |= _norm(f"{layer}.norms.0", WIDTH) | _norm(f"{layer}.norms.1", WIDTH)
    shapes["pixel_decoder.level_encoding.weight"] = (LEVELS, WIDTH)
    for name, inside, kernel in (("lateral_convs", EMBED, 1), ("output_convs", WIDTH, 3)):
        shapes |= _conv(f"pixel_decoder.{name}.0.conv", WIDTH, inside, kernel, False)
        shapes |= _norm(f"pixel_decoder.{name}.0.gn", WIDTH)
    shapes |= _conv("pixel_decoder.mask_feature", WIDTH, WIDTH, 1, True)
    for i in range(DECODER_LAYERS):
        layer = f"transformer_decoder.layers.{i}"
        cross, own, ffn = (
            ("cross_attn", "self_attn", "ffn") if version == 3 else ("attentions.0", "attentions.1", "ffns.0")
        )
        for attention in (cross, own):
            shapes |= {f"{layer}.{attention}.attn.in_proj_weight": (3 * WIDTH, WIDTH)}
            shapes |= {f"{layer}.{attention}.attn.in_proj_bias": (3 * WIDTH,)}
            shapes |= _linear(f"{layer}.{attention}.attn.out_proj", WIDTH, WIDTH)
        shapes |= _ffn(f"{layer}.{ffn}", WIDTH, DECODER_FFN)
        for norm in range(3):
            shapes |= _norm(f"{layer}.norms.{norm}", WIDTH)
    shapes |= _norm("transformer_decoder.post_norm", WIDTH) | _linear("cls_embed", CLASSES + 1, WIDTH)
    shapes |= {"query_embed.weight": (QUERIES, WIDTH), "query_feat.weight": (QUERIES, WIDTH)}
    shapes |= {"level_embed.weight": (LEVELS, WIDTH)}
    for i in (0, 2, 4):
        shapes |= _linear(f"mask_embed.{i}", WIDTH, WIDTH)
    return shapes


# queries that stay apart, masks with an edge, and some high scores
_GAINS = {"transformer_decoder": 0.3, "mask_embed": 2.0, "cls_embed": 4.0}


def fill(seed: int) -> dict[str, np.ndarray]:
    """Random weights under mmdet 3's names, drawn in the names' order; the buffers of indices are left out."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, shape in sorted(layout().items()):
        if name.endswith("relative_position_index"):
            continue
        values = random.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            center = 1.0 if ("norm" in name or ".gn." in name) and name.endswith("weight") else 0.0
            weights[name] = center + 0.2 * values
        else:  # rows of tables are used as they are, matrices keep the scale of what they multiply
            table = any(part in name for part in ("bias_table", "query_", "level_"))
            gain = next((gain for part, gain in _GAINS.items() if part in name), 1.0)
            weights[name] = values * np.float32(1.0 if table else gain / np.sqrt(prod(shape[1:])))
    return {name: value.astype(np.float32) for name, value in weights.items()}


def renamed(weights: dict[str, Any]) -> dict[str, Any]:
    """The same weights under the names of mmdet 2."""
    new_names = dict(zip(layout(3), layout(2), strict=True))
    return {new_names[name]: value for name, value in weights.items()}


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Colored rectangles and a ramp, (height, width, 3) uint8, RGB."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], axis=-1)
    for _ in range(5):
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        bottom, right = top + random.integers(8, height // 2), left + random.integers(8, width // 2)
        image[top:bottom, left:right] = random.integers(0, 256, 3)
    return image.astype(np.uint8)


def pixels(seed: int) -> np.ndarray:
    """What a network is fed: (1, 3, 96, 160) float32, normalized."""
    image = picture(96, 160, seed).astype(np.float32)
    return np.ascontiguousarray(((image - 120) / 58).transpose(2, 0, 1)[None])


def logits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class and mask logits of an image, (100, 81) and (100, 24, 32) float32: smooth masks, some of them empty."""
    random = np.random.default_rng(seed)
    classes = 3 * random.standard_normal((100, 81), dtype=np.float32)
    coarse = 2 * random.standard_normal((100, 6, 8), dtype=np.float32) - 1
    masks = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)
    masks[::10] -= 20
    return classes, masks


Case = tuple[dict[str, Any], dict[str, list[tuple[list[float], str]]]]
"""A prompt's metadata, and what is found: by class, boxes and colors."""


def cases(count: int, seed: int) -> Iterator[Case]:
    """Random prompts of all kinds with detections near and far from what they ask for; boxes on a coarse grid, so
    that ties occur."""
    random = np.random.default_rng(seed)
    names, colors = ("dog", "cat", "tv remote"), ("red", "blue")
    for kind in itertools.islice(itertools.cycle(range(6)), count):
        first, second = random.permutation(len(names))[:2]
        wanted = int(random.integers(1, 4))
        include: list[dict[str, Any]] = [{"class": names[first], "count": wanted if kind in (2, 5) else 1}]
        if kind in (1, 4, 5):
            include.append({"class": names[second], "count": 1})
        if kind in (3, 5):
            include[0]["color"] = str(random.choice(colors))
        if kind in (4, 5):
            relation = str(random.choice(["left of", "right of", "above", "below"]))
            include[1]["position"] = [relation, 0]
        metadata: dict[str, Any] = {"tag": "counting" if kind == 2 else "position", "include": include}
        if kind == 2:
            metadata["exclude"] = [{"class": names[first], "count": wanted + 1}]
        found = {}
        for name in names:
            number = int(random.choice([0, 1, 1, 1, 2, 3, 4]))
            corners = 8 * random.integers(0, 8, (number, 2))
            sizes = 8 * random.integers(1, 6, (number, 2))
            boxes = np.concatenate([corners, corners + sizes], axis=1).astype(float).tolist()
            found[name] = [(box, str(random.choice(colors))) for box in boxes]
        yield metadata, found
