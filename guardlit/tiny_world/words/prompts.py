"""The bundled prompts of the words world: ten texts in many colors and on many backgrounds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from guardlit.tiny_world.words.captions import prompt
from guardlit.tiny_world.words.signs import random_sign

TEXTS, TRAINING, VALIDATION = 10, 6, 2
"""How many texts there are, and prompts of each to train on and to validate; no validation prompt is trained on."""
_SEED = 14


def all_prompts() -> tuple[list[str], list[str]]:
    """60 prompts to train on and 20 to validate: the same texts in other colors and on other backgrounds."""
    rng = np.random.default_rng(_SEED)
    texts: dict[str, list[str]] = {}
    while len(texts) < TEXTS:
        texts[random_sign(rng).text] = []
    for text, prompts in texts.items():
        while len(prompts) < TRAINING + VALIDATION:
            asked = prompt(replace(random_sign(rng), text=text))
            prompts += [asked] * (asked not in prompts)
    training = [asked for prompts in texts.values() for asked in prompts[:TRAINING]]
    return training, [asked for prompts in texts.values() for asked in prompts[TRAINING:]]


def write_prompts(folder: Path) -> None:
    """Write both sets to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in zip(("words", "words_validation"), all_prompts(), strict=True):
        lines = [json.dumps({"prompt": text}) + "\n" for text in prompts]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
