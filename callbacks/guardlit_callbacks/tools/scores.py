"""Scores that a user's code returned, as one number per image. Public; imports numpy and torch only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def column(values: Any, count: int | None = None) -> Tensor:
    """One number per image, (B,) float64 on the CPU.

    Args:
        values: a tensor of any device and dtype, an array, or a list of numbers or of such tensors; True is 1.
        count: B; None takes any number.

    Raises:
        ValueError: `values` is something else, or not one number per image; the text says what it is.
    """
    found = _tensor(values)
    if found is None or found.ndim != 1 or (count is not None and len(found) != count):
        raise ValueError(described(values))
    return found.double()


def described(values: Any) -> str:
    """What a value is, in a few words for an error: None, a Tensor of shape (4, 1), a list of 3 numbers, a dict."""
    if values is None:
        return "None"
    name = type(values).__name__
    article = "an" if name[0].lower() in "aeiou" or name == "ndarray" else "a"
    found = _tensor(values)
    if found is None:
        return f"{article} {name} that holds something else than numbers" if _listed(values) else f"{article} {name}"
    if isinstance(values, list | tuple) and found.ndim == 1:
        return f"{article} {name} of {len(values)} numbers"
    return f"{article} {name} of shape {tuple(found.shape)}" if found.ndim else f"a single number ({float(found):g})"


def _listed(values: Any) -> bool:
    return isinstance(values, list | tuple | np.ndarray | Tensor)


def _tensor(values: Any) -> Tensor | None:
    """The numbers, any shape, on the CPU; None if they are none."""
    if isinstance(values, Tensor):
        return None if values.is_complex() else values.detach().cpu()
    if isinstance(values, list | tuple):
        values = [value.detach().cpu().numpy() if isinstance(value, Tensor) else value for value in values]
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # rows of unequal length
        return None
    return torch.from_numpy(array.astype(np.float64)) if array.dtype.kind in "biuf" else None
