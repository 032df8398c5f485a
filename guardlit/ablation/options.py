"""The values of the options of `guardlit ablate`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeVar

from guardlit.assets.recipes import names
from guardlit.config.library_errors import LARGEST_SEED
from guardlit.errors import GuardlitError, did_you_mean
from guardlit.objective import OBJECTIVES

METHODS = "methods/"
NAMES = [preset.__name__ for preset in OBJECTIVES]

Clip = float | Literal["auto", "auto_per_step"] | None
T = TypeVar("T")


def preset(name: str) -> str:
    """The name of an objective or of a method's recipe; raises `GuardlitError` for any other."""
    known = [*NAMES, *methods()]
    if name not in known:
        raise GuardlitError(f"unknown objective '{name}': {did_you_mean(name, known, 'it is one of')}")
    return name


def methods() -> list[str]:
    """The recipes of methods, such as `methods/gardo`, which change more of a run than its objective."""
    return [name for name in names() if name.startswith(METHODS)]


def objectives(text: str) -> list[str]:
    """`A,B` as names."""
    return list(dict.fromkeys(preset(name.strip()) for name in text.split(",")))


def clips(text: str) -> dict[str, Clip]:
    """`A=1e-3,B=none,C=auto` as clip ranges by objective; `all` stands for all that are not named."""
    found = _by_objective(text, _clip, "--clip", "RANGE", "1e-3")
    bad = next((f"{n}={c}" for n, c in found.items() if isinstance(c, float) and not 0 < c < 1), None)
    if bad:
        raise GuardlitError(f"--clip {bad}: a clip range lies between 0 and 1")
    return found


def _clip(value: str) -> Clip:
    words: dict[str, Clip] = {"none": None, "auto": "auto", "auto_per_step": "auto_per_step"}
    return words[value] if value in words else float(value)


def learning_rates(text: str) -> dict[str, float]:
    """`A=1e-3,B=5e-4` as learning rates by objective; `all` as for clip ranges."""
    found = _by_objective(text, float, "--lr", "RATE", "1e-3")
    bad = next((f"{name}={rate}" for name, rate in found.items() if not 0 < rate < math.inf), None)
    if bad:
        raise GuardlitError(f"--lr {bad}: a learning rate is positive and finite")
    return found


def _by_objective(text: str, read: Callable[[str], T], option: str, kind: str, example: str) -> dict[str, T]:
    named: dict[str, T] = {}
    others: dict[str, T] = {}
    for item in text.split(","):
        name, _, given = item.partition("=")
        try:
            value = read(given)
        except ValueError:
            none = ", FlowGRPO=none, FlowGRPO=auto or FlowGRPO=auto_per_step" if option == "--clip" else ""
            raise GuardlitError(f"{option} {item}: expected NAME={kind}, such as FlowGRPO={example}{none}") from None
        if name.strip() == "all":
            others = dict.fromkeys([*NAMES, *methods()], value)
        else:
            named[preset(name.strip())] = value
    return {**others, **named}


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
