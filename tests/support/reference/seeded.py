"""Weights and pictures that a seed determines on every machine, for the reference programs and for the tests.

numpy and the standard library only: the reference programs run with old libraries.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PROMPTS = [
    "a photo of a red cup on a table",
    "“a curly quote”, isn’t it?",  # noqa: RUF001 - replaced by ASCII in open_clip's tokenizer, not by transformers'
    "a café &amp; a cat",  # entities likewise
    "seven white horses under a tall tree " * 14,  # cut off
    "",
    "Two   BLUE birds",
]
SIZES = [(96, 96), (64, 96), (96, 48), (80, 80), (64, 37), (57, 90)]  # height, width; squares, landscapes, portraits


def weights(shapes: Mapping[str, Any], seed: int, faint: str | None = None) -> dict[str, np.ndarray]:
    """Random weights in the order of the sorted keys, which keep activations at about 1.

    Args:
        shapes: shape of each.
        seed: of numpy's generator.
        faint: keys with this in them get noise of 1e-3, so that the epsilon of a layer norm makes a difference.
    """
    rng = np.random.default_rng(seed)
    filled = {}
    for key in sorted(shapes):
        shape = tuple(shapes[key])
        noise = rng.standard_normal(shape, dtype=np.float32)
        if key == "logit_scale":
            filled[key] = np.full(shape, 4.6052, dtype=np.float32)
        else:
            std = 1e-3 if faint and faint in key else 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1
            noise *= np.float32(std)
            filled[key] = np.asarray(noise + np.float32(len(shape) == 1 and key.endswith("weight")))
    return filled


def pictures(sizes: list[tuple[int, int]] = SIZES) -> list[np.ndarray]:
    """One picture a size: a ramp, blocks, stripes and noise, each alone and mixed; (height, width, 3) uint8."""
    rng = np.random.default_rng(7)
    made = []
    for number, (height, width) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        ramp = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
        blocks = rng.integers(0, 256, (height // 9 + 1, width // 7 + 1, 3)).repeat(9, 0).repeat(7, 1)[:height, :width]
        noise = rng.integers(0, 256, (height, width, 3))
        stripes = np.stack([x % 2 * 255, y % 2 * 255, (x + y) % 2 * 255], axis=-1)
        layers = [ramp, blocks, noise, (blocks + noise) // 2, (ramp + stripes) // 2, (ramp + blocks) // 2]
        made.append(layers[number % len(layers)].astype(np.uint8))
    return made


def write_clip_files(folder: Path, config: dict[str, Any]) -> None:
    """Every file of OpenAI's CLIP folders on the hub but the weights; the vocabulary is the one in open_clip."""
    folder.mkdir(parents=True, exist_ok=True)
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    with gzip.open(Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    edge = config["vision_config"]["image_size"]
    end = "<|endoftext|>"
    settings = {
        "config.json": {"model_type": "clip", "architectures": ["CLIPModel"], **config},
        "vocab.json": {token: number for number, token in enumerate(tokens)},
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "bos_token": "<|startoftext|>",
            "eos_token": end,
            "unk_token": end,
            "pad_token": end,
            "do_lower_case": True,
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "CLIPProcessor",
            "crop_size": {"height": edge, "width": edge},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": edge},
        },
    }
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")


def write_bert_files(folder: Path) -> int:
    """bert-base-uncased's tokenizer files with a small vocabulary; returns the number of its tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    words = ["a", "photo", "of", "red", "cup", "on", "table", "white", "horse", "##s", "under", "tall", "tree"]
    words += ["two", "blue", "bird", "cat", "cafe", "is", "##n", "it"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters), *words]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(dict.fromkeys(tokens))


def imagereward_layout(vision: dict[str, Any], text: dict[str, Any], vocab_size: int) -> dict[str, list[int]]:
    """Key and shape of everything in an `ImageReward.pt`; sizes under transformers' names for them."""
    v, t = vision["hidden_size"], text["hidden_size"]
    v_mlp, t_mlp, patch = vision["intermediate_size"], text["intermediate_size"], vision["patch_size"]
    length = text["max_position_embeddings"]
    shapes: dict[str, list[int]] = {
        "visual_encoder.cls_token": [1, 1, v],
        "visual_encoder.pos_embed": [1, (vision["image_size"] // patch) ** 2 + 1, v],
        "visual_encoder.patch_embed.proj": [v, 3, patch, patch],
        "visual_encoder.norm": [v],
        "text_encoder.embeddings.position_ids": [1, length],
        "text_encoder.embeddings.word_embeddings.weight": [vocab_size, t],
        "text_encoder.embeddings.position_embeddings.weight": [length, t],
        "text_encoder.embeddings.LayerNorm": [t],
        "vision_proj": [256, v],
        "text_proj": [256, t],
    }
    for n in range(vision["num_hidden_layers"]):
        parts = {"norm1": [v], "attn.qkv": [3 * v, v], "attn.proj": [v, v], "norm2": [v]}
        parts |= {"mlp.fc1": [v_mlp, v], "mlp.fc2": [v, v_mlp]}
        shapes |= {f"visual_encoder.blocks.{n}.{part}": shape for part, shape in parts.items()}
    for n in range(text["num_hidden_layers"]):
        parts = {"intermediate.dense": [t_mlp, t], "output.dense": [t, t_mlp], "output.LayerNorm": [t]}
        for attention, seen in (("attention", t), ("crossattention", v)):
            parts |= {f"{attention}.self.query": [t, t], f"{attention}.self.key": [t, seen]}
            parts |= {f"{attention}.self.value": [t, seen], f"{attention}.output.dense": [t, t]}
            parts |= {f"{attention}.output.LayerNorm": [t]}
        shapes |= {f"text_encoder.encoder.layer.{n}.{part}": shape for part, shape in parts.items()}
    shapes = {f"blip.{key}": shape for key, shape in shapes.items()}
    whole = {key: shape for key, shape in shapes.items() if key.endswith((".weight", "_token", "_embed", "_ids"))}
    layers = {key: shape for key, shape in shapes.items() if key not in whole}
    head = {f"mlp.{key}": shape for key, shape in head_layout(t).items()}
    return whole | _weight_and_bias(layers) | head


def head_layout(width: int) -> dict[str, list[int]]:
    """Key and shape of everything in the aesthetic predictor's file."""
    widths = (width, 1024, 128, 64, 16, 1)
    return _weight_and_bias({f"layers.{n}": [widths[i + 1], widths[i]] for i, n in enumerate((0, 2, 4, 6, 7))})


def _weight_and_bias(layers: dict[str, list[int]]) -> dict[str, list[int]]:
    return {f"{key}.{part}": shape[:end] for key, shape in layers.items() for part, end in (("weight", 4), ("bias", 1))}
