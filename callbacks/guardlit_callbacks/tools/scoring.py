"""Gold scorers: their interface, torchmetrics metrics as scorers, and checked scores."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from guardlit_callbacks.tools.lightning import MisconfigurationException
from guardlit_callbacks.tools.scores import column
from guardlit_callbacks.tools.statistics import Array


@dataclass(frozen=True)
class ScoreRequest:
    """Images to score.

    Attributes:
        images: (B, 3, height, width) uint8.
        prompts: B texts.
        metadata: B mappings, one per prompt.
    """

    images: Tensor
    prompts: list[str]
    metadata: list[Mapping[str, Any]]

    def __len__(self) -> int:
        return len(self.prompts)


@runtime_checkable
class GoldScorer(Protocol):
    """Any object that scores images, one value each.

    Its annotations are `Any`, so that a command line accepts any class with these methods, however annotated.
    """

    def setup(self, device: Any) -> Any:
        """Loads weights to a `torch.device`; called once before the first score."""

    def score(self, request: Any) -> Any:
        """Scores a `ScoreRequest`: one number per image, or an object with `values` (B,) and `valid` (B,) bool."""


RESERVED = ("step", "prompt", "index", "place", "reasons", "proxy", "average", "average_low", "average_high")

Scorers = dict[str, GoldScorer | Metric] | list[GoldScorer | Metric]


def named(scorers: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
    """The scorers by name; in a list the name is the attribute `name`, or the class name in lower case.

    Raises:
        ValueError: no scorer; two of one name; a name that is a column of `gold.csv`.
    """
    if not isinstance(scorers, Mapping):
        names = [str(getattr(scorer, "name", None) or type(scorer).__name__.lower()) for scorer in scorers]
        if len(set(names)) < len(names):
            raise ValueError(
                f"GoldScore: two scorers have the same name among {names}; give a mapping of name to scorer"
            )
        scorers = dict(zip(names, scorers, strict=True))
    if not scorers:
        raise ValueError("GoldScore: scorers is empty; name at least one gold scorer")
    if taken := [name for name in scorers if name in RESERVED]:
        raise ValueError(f"GoldScore: a scorer cannot be named {taken[0]!r}, which the callback logs itself")
    return dict(scorers)


def set_up(scorer: GoldScorer | Metric, device: torch.device) -> None:
    """Sets up a scorer on a device."""
    if isinstance(scorer, Metric):
        scorer.to(device)
        scorer.sync_on_compute = False  # the scores are gathered, not the metric's state
    else:
        scorer.setup(device)


def can_close(scorer: Any) -> bool:
    """Whether a scorer has resources to release."""
    return callable(getattr(scorer, "close", None))


def compares_images(scorer: Any) -> bool:
    """Whether an image's score depends on the other images of its prompt."""
    return bool(getattr(scorer, "compares_images", False))


def score(scorer: GoldScorer | Metric, name: str, request: ScoreRequest) -> tuple[Array, str]:
    """One value per sample, (B,) float64, NaN where the score failed; and the reason of the first failure, or "".

    A torchmetrics metric is updated with one sample at a time, by `update(images, prompts)` or, where it takes one
    argument, `update(images)`: it must be a mean over samples, as CLIPScore is.

    Raises:
        MisconfigurationException: the scorer did not return one number per sample.
    """
    if isinstance(scorer, Metric):
        return np.array([_metric_of_one(scorer, request, i) for i in range(len(request))]), ""
    result, count = scorer.score(request), len(request)
    has_both = hasattr(result, "values") and hasattr(result, "valid")
    try:
        values = column(result.values if has_both else result, count)
        valid = column(result.valid, count) != 0 if has_both else values.isfinite()
    except ValueError as error:
        raise MisconfigurationException(
            f"GoldScore: score() of {name!r} ({type(scorer).__name__}) returned {error} for {count} images; return one "
            f"number per image, ({count},): a tensor, an array or a list, or an object with such `values` and `valid`"
        ) from error
    return np.where(valid.numpy(), values.numpy(), np.nan), str(getattr(result, "reason", "") or "")


def _metric_of_one(metric: Metric, request: ScoreRequest, i: int) -> float:
    image, prompt = request.images[i : i + 1], request.prompts[i : i + 1]
    metric.reset()
    metric.update(image, prompt) if len(inspect.signature(metric.update).parameters) > 1 else metric.update(image)
    return float(metric.compute())
