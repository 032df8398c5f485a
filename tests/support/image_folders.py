"""Small folders of images with their prompts, in the format of Hugging Face's `imagefolder`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CAPTIONS = ("a red car", "two dogs", "a cat on a table", "a tree", "a cup", "a bird", "the sea")


def write_images(folder: Path, side: int = 32, texts: Sequence[str] = CAPTIONS, seed: int = 0) -> Path:
    """One PNG of random colors, smooth enough to survive a VAE, for each text; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows = []
    for i, text in enumerate(texts):
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": text})
    write_metadata(folder, rows)
    return folder


def write_metadata(folder: Path, rows: Sequence[object]) -> None:
    """The lines of `metadata.jsonl`, as they are given if they are texts."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("".join(f"{line}\n" for line in lines))
