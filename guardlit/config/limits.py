"""Settings of Lightning's own that Lightning takes and no run can mean, and its complaints as one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from guardlit.errors import GuardlitError, at_least

LEAST = {
    "max_epochs": -1,
    "gradient_clip_val": 0,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
}
"""By the Trainer's argument; null passes."""
LARGEST_SEED = 2**32 - 1
"""Of numpy's generator."""


def check_seed(seed: bool | int) -> None:
    """Refuse a seed that numpy cannot take; raises `GuardlitError`."""
    if not 0 <= seed <= LARGEST_SEED:
        raise GuardlitError(f"seed_everything={seed} must lie in 0 to {LARGEST_SEED}")


def check_trainer(arguments: Mapping[str, Any]) -> None:
    """Refuse numbers of the Trainer that it would take and that mean nothing.

    Args:
        arguments: by name; those that are left out have Lightning's defaults.

    Raises:
        GuardlitError: naming the first one.
    """
    for name, least in LEAST.items():
        if isinstance(value := arguments.get(name), int | float):
            at_least(least, **{f"trainer.{name}": value})


@contextmanager
def as_one_line(place: str) -> Iterator[None]:
    """Turn what a library raises over the settings at a place into one line that names it."""
    try:
        yield
    except (ImportError, MisconfigurationException, TypeError, ValueError) as error:
        raise GuardlitError(f"{place}: {' '.join(str(error).split())}") from error
