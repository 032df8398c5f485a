"""The values of the options of `guardlit ablate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from guardlit.config.library_errors import LARGEST_SEED
from guardlit.errors import GuardlitError, did_you_mean
from guardlit.objective import OBJECTIVES

NAMES = [preset.__name__ for preset in OBJECTIVES]

T = TypeVar("T")


def preset(name: str) -> str:
    """The name of an objective; raises `GuardlitError` for any other."""
    if name not in NAMES:
        raise GuardlitError(f"unknown objective '{name}': {did_you_mean(name, NAMES, 'it is one of')}")
    return name


def objectives(text: str) -> list[str]:
    """`A,B` as names."""
    return list(dict.fromkeys(preset(name.strip()) for name in text.split(",")))


def clips(text: str) -> dict[str, float | None]:
    """`A=1e-3,B=none` as clip ranges by objective."""
    found = _by_objective(text, lambda value: None if value == "none" else float(value), "--clip", "RANGE", "1e-3")
    bad = next((f"{n}={c}" for n, c in found.items() if c is not None and not (0 < c < 1 and math.isfinite(c))), None)
    if bad:
        raise GuardlitError(f"--clip {bad}: a clip range lies between 0 and 1")
    return found


def learning_rates(text: str) -> dict[str, float]:
    """`A=1e-3,B=5e-4` as learning rates by objective."""
    found = _by_objective(text, float, "--lr", "RATE", "1e-3")
    bad = next((f"{name}={rate}" for name, rate in found.items() if not 0 < rate < math.inf), None)
    if bad:
        raise GuardlitError(f"--lr {bad}: a learning rate is positive and finite")
    return found


def _by_objective(text: str, read: Callable[[str], T], option: str, kind: str, example: str) -> dict[str, T]:
    found: dict[str, T] = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        try:
            found[preset(name.strip())] = read(value)
        except ValueError:
            none = " or FlowGRPO=none" if option == "--clip" else ""
            raise GuardlitError(f"{option} {item}: expected NAME={kind}, such as FlowGRPO={example}{none}") from None
    return found


def seeds(text: str) -> list[int]:
    """`S,T` as seeds."""
    found = [seed.strip() for seed in text.split(",")]
    bad = next((seed for seed in found if not (seed.isascii() and seed.isdigit() and int(seed) <= LARGEST_SEED)), None)
    if bad is not None:
        raise GuardlitError(f"--seeds {text}: '{bad}' is not a whole number from 0 to {LARGEST_SEED}")
    return list(dict.fromkeys(map(int, found)))


def jobs(text: str) -> int:
    """A number of trainings, at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise GuardlitError(f"--jobs {text}: expected a whole number of at least 1")
    return int(text)
