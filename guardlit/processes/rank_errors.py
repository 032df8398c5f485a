"""Errors of several ranks: which are shared, which only report that another rank is gone, and torchrun's report."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from guardlit.errors import GuardlitError

_CONNECTION_LOSS = re.compile(
    r"gloo|nccl|process ?group|connection (was likely )?(closed|reset|refused)|broken pipe|timed? ?out|remote process",
    re.IGNORECASE,
)


class OtherRankError(GuardlitError):
    """This rank stopped because another rank failed."""


def is_on_all_ranks(error: BaseException) -> bool:
    """Whether every rank raises this error."""
    return bool(getattr(error, "on_all_ranks", False))


def is_connection_loss(error: BaseException) -> bool:
    """Whether an error only reports that another rank is gone or late."""
    lost = type(error) is RuntimeError and bool(_CONNECTION_LOSS.search(str(error)))
    return isinstance(error, dist.DistError) or lost


def is_timeout(error: BaseException) -> bool:
    """Whether an error reports that a collective took too long."""
    return bool(re.search("timed? ?out", str(error), re.IGNORECASE))


def one_line(error: BaseException) -> str:
    """An error's class, unless it is a `GuardlitError`, and the first line of its message."""
    message = str(error).strip().partition("\n")[0][:500]
    kind = "" if isinstance(error, GuardlitError) else type(error).__name__
    return ": ".join(part for part in (kind, message) if part)


@contextmanager
def report_to_launcher() -> Iterator[None]:
    """Give the error that ends this process to torchrun, whose closing report shows it; else the report names none."""
    try:
        yield
    except Exception as error:
        if "TORCHELASTIC_ERROR_FILE" in os.environ and not isinstance(error, OtherRankError):
            _record(error)
        raise


def _record(error: Exception) -> None:
    # the handler writes the traceback of the error at hand: an error for the user is raised here, without its own
    try:
        if isinstance(error, GuardlitError) or is_on_all_ranks(error):
            raise type(error).__new__(type(error), str(error)) from None
        raise error
    except Exception as shown:
        get_error_handler().record_exception(shown)
