"""Reads values that a step returned; errors name the key, the keys there are, and the argument to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from guardlit_callbacks.tools.lightning import MisconfigurationException


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
