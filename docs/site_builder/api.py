"""The reference of a package's public names: what autodoc is asked for."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import ModuleType

import lightning.pytorch as pl
from lightning.pytorch.strategies import Strategy

SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "guardlit": {
        "The run": ("guardlit.commands", "guardlit.training", "guardlit.data", "guardlit.errors"),
        "Rollouts and windows": ("guardlit.rounds",),
        "Objectives": ("guardlit.objective", "guardlit.surrogate"),
        "Advantages and the KL penalty": ("guardlit.advantage", "guardlit.kl"),
        "Samplers": ("guardlit.sde",),
        "Policies": ("guardlit.policies",),
        "Rewards": ("guardlit.rewards",),
    },
    "guardlit_callbacks": {"Scores": ("guardlit_callbacks.composite",), "Callbacks": ("guardlit_callbacks",)},
}
"""Headings by package, each with the modules whose names stand under it."""


LIGHTNING = (pl.Callback, pl.LightningModule, pl.LightningDataModule, Strategy)


def is_hook(found: object) -> bool:
    """Whether a member of a class only answers a hook of Lightning, which Lightning documents and calls.

    Args:
        found: a method or property.
    """
    function = getattr(found, "fget", found)
    owner, _, name = getattr(function, "__qualname__", "").rpartition(".")
    cls = getattr(sys.modules.get(getattr(function, "__module__", "")), owner, None)
    bases = [base for base in LIGHTNING if inspect.isclass(cls) and issubclass(cls, base)]
    return any(hasattr(base, name) for base in bases)


def api(package: str) -> str:
    """Every public name of a package, by heading.

    Args:
        package: an import name with an `__all__`.
    """
    module = import_module(package)
    grouped: dict[str, list[str]] = {heading: [] for heading in [*SECTIONS[package], "More"]}
    for name in module.__all__:
        grouped[_heading(package, getattr(module, name).__module__)].append(name)
    return "\n".join(_section(module, heading, names) for heading, names in grouped.items() if names)


def _heading(package: str, home: str) -> str:
    for heading, modules in SECTIONS[package].items():
        if any(f"{home}.".startswith(f"{prefix}.") for prefix in modules):
            return heading
    return "More"


def _section(module: ModuleType, heading: str, names: Iterable[str]) -> str:
    entries = "\n".join(line for name in names for line in _entry(module, name))
    return f"## {heading}\n\n```{{eval-rst}}\n{entries}\n```\n"


def _entry(module: ModuleType, name: str) -> Iterator[str]:
    found = getattr(module, name)
    kind = "class" if inspect.isclass(found) else "function"
    kind = "exception" if kind == "class" and issubclass(found, Exception) else kind
    yield from (f".. auto{kind}:: {module.__name__}.{name}", "")
