"""Errors of libraries and the system as one line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from guardlit.errors import GuardlitError

LARGEST_SEED = 2**32 - 1
"""Of what numpy accepts."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""Errors of the system where a log, an image or a table cannot be written; checkpoints say more by themselves."""

NOT_LOGGED = "Early stopping conditioned on metric"
"""How the RuntimeError of Lightning's EarlyStopping begins whose key is not logged."""


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
    except RuntimeError as error:
        if not str(error).startswith(NOT_LOGGED):
            raise
        raise GuardlitError(f"trainer.callbacks: {error}") from error
    except MisconfigurationException as error:  # how Lightning and the callbacks report a user's mistake
        raise GuardlitError(str(error)) from error
