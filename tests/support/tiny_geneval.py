"""Folders for GenEval with a few thousand random weights: the detector by way of its published format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from reference import geneval_tiny as tiny

SEED = 3  # of reference/geneval.json


def make_checkpoint(path: Path, *, version: int = 3) -> Path:
    """A file like mmdet's: weights and a word on their origin; the older generation in torch's older file format."""
    weights: dict[str, Any] = {name: torch.from_numpy(value) for name, value in tiny.fill(SEED).items()}
    weights |= {
        name: torch.zeros(shape, dtype=torch.long)
        for name, shape in tiny.layout().items()
        if name.endswith("relative_position_index")
    }
    if version == 2:
        weights = tiny.renamed(weights)
    content = {"meta": {"CLASSES": ("person", "bicycle"), "epoch": 50}, "state_dict": weights}
    torch.save(content, path, _use_new_zipfile_serialization=version == 3)
    return path


def make_detector(folder: Path) -> Path:
    """What `guardlit convert mask2former` makes of it."""
    from guardlit.commands.convert import convert_mask2former

    folder.mkdir(parents=True)
    convert_mask2former(make_checkpoint(folder / "mask2former.pth"), folder / "detector")
    return folder / "detector"


def make_color_clip(folder: Path) -> Any:
    """A CLIP with open_clip, and the same weights as a transformers folder with CLIP's full vocabulary.

    Returns:
        open_clip's model.
    """
    import open_clip
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(
            embed_dim=32,
            vision_cfg={"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
            quick_gelu=True,
        ).eval()
        for name, parameter in model.named_parameters():  # as drawn, all texts and all pictures look alike
            spread = 0.05 if parameter.ndim <= 1 else 3.0 if "token" in name or "conv1" in name else 1.0
            parameter.data = torch.randn_like(parameter) * spread + (parameter.ndim == 1 and name.endswith("weight"))
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tower | {"hidden_act": "quick_gelu", "eos_token_id": 2},
        vision_config=tower | {"hidden_act": "quick_gelu", "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    clip = CLIPModel(config)
    clip.load_state_dict(_as_transformers(model.state_dict()))
    clip.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    _write_vocabulary(folder)
    return model


def _as_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renames = (
        ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
        ("visual.proj", "visual_projection.weight"),
        ("token_embedding", "text_model.embeddings.token_embedding"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("transformer.resblocks.", "text_model.encoder.layers."),
        ("ln_final", "text_model.final_layer_norm"),
        ("text_projection", "text_projection.weight"),
        (".ln_1.", ".layer_norm1."),
        (".ln_2.", ".layer_norm2."),
        (".attn.", ".self_attn."),
        (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."),
    )
    renamed = {}
    for name, weight in weights.items():
        new = name
        for old, replacement in renames:
            if new.startswith(old) or (old.startswith(".") and old in new):
                new = new.replace(old, replacement)
        if name in ("visual.proj", "text_projection"):
            renamed[new] = weight.T.contiguous()
        elif "in_proj_" in new:
            for part, third in zip("qkv", weight.chunk(3), strict=True):
                renamed[new.replace("in_proj_", f"{part}_proj.")] = third.clone()
        else:
            renamed[new] = weight
    return renamed


def _write_vocabulary(folder: Path) -> None:
    """The published byte pairs, which open_clip carries, as CLIP's tokenizer files."""
    import open_clip

    tokenizer = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): index for token, index in tokenizer.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    merges = [" ".join(pair) for pair in tokenizer.bpe_ranks]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
