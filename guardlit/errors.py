"""Errors that the command line prints as one line, hints at similar names, and the bounds that most numbers share."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable


class GuardlitError(Exception):
    """An error that the user can fix: the message names the place, what was found and what would be right.

    Attributes:
        on_all_ranks: whether every rank raises it at the same point, so that collectives still work.
    """

    on_all_ranks: bool = False


class NonFiniteError(GuardlitError):
    """Training has diverged: the run cannot continue with its weights, and a checkpoint of them is useless.

    Attributes:
        restart_from: the checkpoint that the run restarts from by itself, if there is one.
    """

    restart_from: str | None = None


def at_least(least: float, **values: float | None) -> None:
    """Refuse numbers below a bound, infinity and NaN; null passes.

    Args:
        least: the smallest allowed value.
        values: by the names that the message gives them.

    Raises:
        GuardlitError: naming the first value that is not allowed.
    """
    for name, value in values.items():
        if value is not None and not least <= value < math.inf:
            raise GuardlitError(
                f"{name}={value} must be at least {least:g}{' and finite' if value == math.inf else ''}"
            )


def positive(**values: float | None) -> None:
    """Refuse numbers that are not above 0, infinity and NaN: raises `GuardlitError` as `at_least` does; null passes."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise GuardlitError(f"{name}={value} must be positive and finite")


def hub_refusal(error: BaseException, name: str, kind: str = "") -> str:
    """What to do where the Hugging Face hub does not let a repository be read; empty for an error of another kind.

    Args:
        error: of a library that downloads; its causes are looked at, too.
        name: of the repository, owner/name.
        kind: part of its address, such as `datasets/`; empty for models.
    """
    page = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{kind}{name}"
    cause: BaseException | None = error
    while cause is not None:
        kinds = {base.__name__ for base in type(cause).__mro__}  # the library need not be imported for it
        status = getattr(getattr(cause, "response", None), "status_code", None)
        of_datasets = str(cause) if "DatasetNotFoundError" in kinds else ""  # that library drops the cause
        if "GatedRepoError" in kinds or "gated dataset" in of_datasets:
            if status == 403 or "ask for access" in of_datasets:
                return f"it is gated, and this login has no access: accept its license at {page} with the same account"
            return f"it is gated: accept its license at {page}, then log in with `hf auth login` or set HF_TOKEN"
        if "RepositoryNotFoundError" in kinds or of_datasets:
            return "the hub has none of this name, or it is private: check the name, or log in with `hf auth login`"
        if status == 401:
            return "the hub does not accept this login: log in again with `hf auth login`, or set HF_TOKEN"
        cause = cause.__cause__ or cause.__context__
    return ""


def similar(word: str, known: Iterable[str], n: int = 1) -> list[str]:
    """At most n known words that are similar to a misspelled one, letter case aside; the most similar first."""
    import difflib

    by_lower = {candidate.lower(): candidate for candidate in known}
    return [by_lower[match] for match in difflib.get_close_matches(word.lower(), by_lower, n)]


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "", n: int = 1) -> str:
    """The end of a message about an unknown word.

    Args:
        word: what was found.
        known: what would be right.
        otherwise: the words before the list of all known ones, where none is similar; without, that is an empty text.
        n: similar words to name at most.

    Returns:
        Such as `did you mean fit?` or `commands are fit, validate, ...`.
    """
    known = list(known)
    if found := similar(word, known, n):
        return f"did you mean {' or '.join(found)}?"
    return f"{otherwise} {', '.join(known)}" if otherwise else ""
