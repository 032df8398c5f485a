"""Folders for GenEval with a few thousand random weights: the detector by way of its published format."""

from __future__ import annotations

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
    from guardlit.convert import convert_mask2former

    folder.mkdir(parents=True)
    convert_mask2former(make_checkpoint(folder / "mask2former.pth"), folder / "detector")
    return folder / "detector"
