"""The bundled prompts of the words world, to train on and to validate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from guardlit.tiny_world.words.captions import prompt
from guardlit.tiny_world.words.signs import random_sign

TRAINING, VALIDATION = 120, 20
_SEED = 14


def all_prompts() -> tuple[list[str], list[str]]:
    """Prompts of different texts, colors and backgrounds: 120 to train on, and 20 others to watch."""
    rng = np.random.default_rng(_SEED)
    distinct: dict[str, None] = {}
    while len(distinct) < TRAINING + VALIDATION:
        distinct[prompt(random_sign(rng))] = None
    return list(distinct)[:TRAINING], list(distinct)[TRAINING:]


def write_prompts(folder: Path) -> None:
    """Write both files to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in zip(("words", "words_validation"), all_prompts(), strict=True):
        lines = [json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
