"""What a scorer's `score` returned, as a result: converted, or refused in one line that says what to return."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from guardlit_callbacks.tools.scores import column, described

from guardlit.errors import GuardlitError
from guardlit.types import RewardResult

PACKAGE = str(Path(__file__).parents[1])


def as_result(returned: Any, count: int, name: str, provenance: Mapping[str, str]) -> RewardResult:
    """A result with one value per image.

    Args:
        returned: a `RewardResult`, or one number per image in a tensor, an array or a list.
        count: B, the images that were scored.
        name: of the scorer, for errors.
        provenance: of a result that has none.

    Raises:
        GuardlitError: there is not one number, or not one row of features, per image.
    """
    try:
        if not isinstance(returned, RewardResult):
            return RewardResult.from_values(column(returned, count), provenance=provenance)
        values, valid = column(returned.values, count), column(returned.valid, count) != 0
    except ValueError as error:
        raise GuardlitError(
            f"reward '{name}': score() returned {error} for {count} images; return self.result(values) with one number "
            f"per image, ({count},), and NaN where scoring failed"
        ) from error
    features = returned.features
    if features is not None and (features.ndim != 2 or len(features) != count):
        raise GuardlitError(
            f"reward '{name}': score() gave features {tuple(features.shape)} for {count} images; give one row per image"
        )
    checked = RewardResult.from_values(torch.where(valid, values, torch.nan), details=returned.details)
    return replace(checked, provenance=returned.provenance, reason=returned.reason, features=features)


def numbers(values: Any, name: str) -> torch.Tensor:
    """Scores (B,) that a scorer passed to `result`.

    Raises:
        GuardlitError: they are no numbers, or not one per image.
    """
    try:
        return column(values)
    except ValueError as error:
        raise GuardlitError(
            f"reward '{name}': self.result() got {described(values)}; give it one number per image, (B,), as a tensor, "
            "an array or a list"
        ) from error


def raised(error: Exception, name: str, module: str) -> str:
    """An exception of a scorer in one line, with its place where the scorer is not of this package."""
    said = str(error).strip().partition("\n")[0][:300]
    reason = f"{name}: {type(error).__name__}{': ' if said else ''}{said}"
    traced = traceback.extract_tb(error.__traceback__)
    frames = [f for f in traced if "site-packages" not in f.filename and not f.filename.startswith(PACKAGE)]
    if module.partition(".")[0] == __name__.partition(".")[0] or not frames:
        return reason
    return f"{reason} ({frames[-1].filename}, line {frames[-1].lineno})"
