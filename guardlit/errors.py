"""What the command line turns into a single line, and the bounds that most numbers share."""

from __future__ import annotations

import math


class GuardlitError(Exception):
    """A mistake the user can mend: the message names the place, what was found and what would be right.

    Attributes:
        on_all_ranks: whether all processes of the run raise it at the same point: they may then save together.
    """

    on_all_ranks: bool = False


class NonFiniteError(GuardlitError):
    """Numbers that went wrong: the run cannot go on from its weights, and a checkpoint of them would be no good.

    Attributes:
        restart_from: the checkpoint from which the run is to go on by itself, where there is one.
    """

    restart_from: str | None = None


def at_least(least: float, **values: float | None) -> None:
    """Refuse numbers below a bound, infinity and NaN; null passes.

    Args:
        least: the smallest that will do.
        values: by the names that the message gives them.

    Raises:
        GuardlitError: naming the first that will not do.
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
