"""Bounds for the Trainer's arguments; errors of libraries and the system as one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from guardlit.errors import GuardlitError, at_least

LARGEST_SEED = 2**32 - 1
"""Of what numpy accepts."""

LEAST = {
    "max_epochs": -1,
    "gradient_clip_val": 0,
    "check_val_every_n_epoch": 1,
    "log_every_n_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
}
"""Smallest value, by the Trainer's argument; null passes."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""Errors of the system where a log, an image or a table cannot be written; checkpoints say more by themselves."""


def check_trainer(arguments: Mapping[str, Any]) -> None:
    """Refuse numbers that the Trainer accepts and that mean nothing.

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
    """Turn what a library raises about the settings at a place into one line that names the place."""
    try:
        yield
    except (ImportError, MisconfigurationException, TypeError, ValueError) as error:
        raise GuardlitError(f"{place}: {' '.join(str(error).split())}") from error


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that a user can fix, of Lightning and of the system, into a `GuardlitError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = f" ({error.filename})" if error.filename else ""
        text = f"{os.strerror(error.errno)}{where}; fix that, then resume with --ckpt_path last"
        raise GuardlitError(text) from error
    except MisconfigurationException as error:  # how Lightning and the callbacks report a user's mistake
        raise GuardlitError(str(error)) from error
