"""Scores that compare the images of a prompt: all of a prompt's images in one request, whatever the batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guardlit_callbacks.distributed.gather import distinct, gather_objects, interleave
from guardlit_callbacks.tools.lightning import MisconfigurationException
from guardlit_callbacks.tools.scoring import GoldScorer, ScoreRequest, score
from guardlit_callbacks.tools.statistics import Array

Sample = dict[str, Any]
"""A sample's prompt, its scores by scorer, its `place` (a rank, and the position among that rank's images) and, where
given, its proxy reward, its index, and the `reasons` of failures by scorer."""

Kept = tuple[Tensor, Mapping[str, Any]]
"""An image on the CPU and its prompt's metadata."""


def score_by_prompt(
    scorers: Mapping[str, GoldScorer], samples: Sequence[Sample], kept: Sequence[Kept], rank: int, device: torch.device
) -> None:
    """Adds the scores of scorers that compare images to the samples. Collective: every rank must call it.

    The images are gathered prompt by prompt, so that no rank ever holds more than its own and those of one prompt.

    Args:
        scorers: by name.
        samples: of all ranks, equal on every rank.
        kept: this rank's images, by position.
        rank: this one.
        device: of the scorers.

    Raises:
        MisconfigurationException: a prompt has a single image; see `score`.
    """
    by_prompt: dict[str, list[Sample]] = {}
    for sample in samples if scorers else ():
        by_prompt.setdefault(sample["prompt"], []).append(sample)
    for prompt, group in by_prompt.items():
        if len(group) < 2:
            raise MisconfigurationException(
                f"GoldScore: {next(iter(scorers))!r} compares the images of a prompt, and validation has a single one "
                f"of {prompt!r}; validate with two or more images per prompt, or remove the scorer"
            )
        mine = {sample["place"]: kept[sample["place"][1]] for sample in group if sample["place"][0] == rank}
        found = {place: image for part in gather_objects(mine) for place, image in part.items()}
        images, metadata = zip(*(found[sample["place"]] for sample in group), strict=True)
        request = ScoreRequest(torch.stack(images).to(device), [prompt] * len(group), list(metadata))
        for name, scorer in scorers.items():
            add_scores(group, name, *score(scorer, name, request))


def add_scores(samples: Sequence[Sample], name: str, values: Array, reason: str = "") -> None:
    """Adds one score to each sample, and to failed ones the reason."""
    for sample, value in zip(samples, values, strict=True):
        sample[name] = float(value)
        if np.isnan(value) and reason:
            sample["reasons"] = {**sample.get("reasons", {}), name: reason}


def distinct_samples(ranks: Sequence[Sequence[Sample]]) -> list[Sample]:
    """The samples of all ranks in the order of the data set, each index once, with their places."""
    placed = [[{**s, "place": (rank, i)} for i, s in enumerate(samples)] for rank, samples in enumerate(ranks)]
    samples = interleave(placed)
    if "index" not in samples[0]:
        return samples
    return [samples[position] for position in distinct([sample["index"] for sample in samples])]


def means_by_prompt(samples: list[Sample]) -> tuple[list[str], dict[str, Array]]:
    """Prompts in alphabetical order and each column's mean per prompt."""
    by_prompt: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: (s["prompt"], s.get("index", 0))):
        by_prompt.setdefault(sample["prompt"], []).append(sample)
    names = [name for name in samples[0] if name not in ("prompt", "index", "place", "reasons")]
    means = {name: np.array([np.mean([s[name] for s in group]) for group in by_prompt.values()]) for name in names}
    return list(by_prompt), means
