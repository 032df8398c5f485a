"""Limits of a policy's settings, for any model, and their errors."""

from __future__ import annotations

from pathlib import Path

import torch

from guardlit.errors import GuardlitError, at_least

MOST_TOKENS = 1024
"""The longest prompt that any family's pipeline takes."""


def check_limits(resolution: int, max_sequence_length: int, decode_batch: int) -> None:
    """Refuse sizes that no model can have; arguments as for `DiffusersPolicy`.

    Raises:
        GuardlitError: naming the first one.
    """
    at_least(1, resolution=resolution, max_sequence_length=max_sequence_length, decode_batch=decode_batch)
    if max_sequence_length > MOST_TOKENS:
        raise GuardlitError(f"max_sequence_length={max_sequence_length} must be at most {MOST_TOKENS} tokens")


def check_devices(**devices: str | None) -> None:
    """Refuse names of no device; raises `GuardlitError` with the option's name."""
    for name, device in devices.items():
        try:
            torch.device(device or "cpu")
        except RuntimeError as error:
            raise GuardlitError(f"{name}={device} is no device; write cpu, cuda:0 or null") from error


def no_guidance(folder: Path, scale: float, reason: str) -> GuardlitError:
    """The error for a guidance scale above 1 of a model without guidance."""
    return GuardlitError(
        f"guidance_scale={scale}: {folder} {reason}; "
        "set model.rollout.guidance_scale and model.evaluation.guidance_scale to 1"
    )
