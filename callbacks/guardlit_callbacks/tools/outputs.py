"""Reads values that a step returned; errors name the key, the keys there are, and the argument to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from torch import Tensor

from guardlit_callbacks.tools.lightning import LightningModule, MisconfigurationException


def is_skipped(outputs: Any, pl_module: LightningModule) -> bool:
    """Whether `training_step` returned None, by which automatic optimization skips a batch."""
    return bool(pl_module.automatic_optimization) and not outputs


def read_value(outputs: Any, key: str, callback: object, argument: str) -> Any:
    """The value under `key` in a step's outputs.

    Args:
        outputs: what `training_step` or `validation_step` returned, as Lightning passes it to a callback.
        key: the key to read.
        callback: the callback that reads; named in the error.
        argument: the constructor argument of that callback that sets the key; named in the error.

    Raises:
        MisconfigurationException: the key is missing.
    """
    if isinstance(outputs, Mapping) and key in outputs:
        return outputs[key]
    name = type(callback).__name__
    if isinstance(outputs, Mapping):
        found = f"has only {', '.join(map(repr, outputs))}" if outputs else "is empty"
        what = f"the dictionary that the step returned {found}"
    else:
        what = f"the step returned {type(outputs).__name__}, not a dictionary"
    raise MisconfigurationException(
        f"{name}: no output {key!r}: {what}; return it from the step, or name the right key with {name}({argument}=...)"
        f"{f', or {name}({argument}=None) to do without' if _may_be_none(callback, argument) else ''}"
    )


def read_output(outputs: Any, key: str, callback: object, argument: str) -> Tensor:
    """The tensor under `key`, detached, any shape; arguments as for `read_value`.

    Raises:
        MisconfigurationException: the key is missing, or its value is not a tensor.
    """
    value = read_value(outputs, key, callback, argument)
    if not isinstance(value, Tensor):
        name = type(callback).__name__
        raise MisconfigurationException(
            f"{name}: the output {key!r} is a {type(value).__name__}, not a tensor; "
            f"return a tensor, or name the right key with {name}({argument}=...)"
        )
    return value.detach()


def read_column(outputs: Any, key: str, callback: object, argument: str, count: int) -> Tensor:
    """The tensor under `key`, one number per image, (count,); arguments as for `read_value`.

    Raises:
        MisconfigurationException: the key is missing, or does not hold `count` numbers.
    """
    values = read_output(outputs, key, callback, argument)
    if values.shape != (count,):
        raise MisconfigurationException(
            f"{type(callback).__name__}: the output {key!r} is {tuple(values.shape)} for {count} images; it must be "
            f"({count},), one number per image"
        )
    return values


def read_table(outputs: Any, key: str, callback: object, argument: str) -> Tensor:
    """The tensor under `key`, one row of numbers per sample, (B, T); arguments as for `read_value`.

    Raises:
        MisconfigurationException: the key is missing, or does not hold a table.
    """
    values = read_output(outputs, key, callback, argument)
    if values.ndim != 2 or values.shape[1] < 1:
        raise MisconfigurationException(
            f"{type(callback).__name__}: the output {key!r} is {tuple(values.shape)}; it must be (B, T), one number "
            "per sample and denoising step"
        )
    return values


def read_texts(outputs: Any, key: str, callback: object, argument: str, count: int) -> list[str]:
    """The texts under `key`, one per image; arguments as for `read_value`.

    Raises:
        MisconfigurationException: the key is missing, or does not hold `count` texts.
    """
    return [str(text) for text in _per_image(outputs, key, callback, argument, count, str, "text")]


def read_mappings(outputs: Any, key: str, callback: object, argument: str, count: int) -> list[Mapping[str, Any]]:
    """The mappings under `key`, one per image; arguments as for `read_value`.

    Raises:
        MisconfigurationException: the key is missing, or does not hold `count` mappings.
    """
    return _per_image(outputs, key, callback, argument, count, Mapping, "mapping")


def _per_image(outputs: Any, key: str, callback: object, argument: str, count: int, kind: Any, word: str) -> list[Any]:
    values = read_value(outputs, key, callback, argument)
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if listed and len(values) == count and all(isinstance(value, kind) for value in values):
        return list(values)
    found = f"{type(values).__name__} of {len(values)}" if listed else type(values).__name__
    other = next((type(value).__name__ for value in values if not isinstance(value, kind)), None) if listed else None
    raise MisconfigurationException(
        f"{type(callback).__name__}: the output {key!r} is a {found}{f', with a {other} in it' if other else ''}; it "
        f"must be a list of {count}, one {word} per image"
    )


def _may_be_none(callback: object, argument: str) -> bool:
    """Whether the constructor's annotation of an argument allows None."""
    found = signature(type(callback).__init__).parameters.get(argument)
    return found is not None and "None" in str(found.annotation)
