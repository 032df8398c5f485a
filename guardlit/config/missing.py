"""What is not there: a configuration file, a class before its settings, a package that a class needs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from guardlit.assets.recipes import meant, names
from guardlit.config.nearest import hint, nearest, nearest_file

OWN_RECIPES = "; `guardlit recipes` lists the names of those that come with guardlit"
NOT_INSTALLED = re.compile(
    r"given class_path '(?P<cls>[^']+)':\s+(?:Requirement|Module|Neither)"
    r".*?pip install (?:-U )?(?P<needed>'[^']+'|[\w.-]+)",
    re.DOTALL,
)

EXTRAS = {"WandbLogger": "'guardlit[wandb]'"}
"""Of guardlit, by the class that needs one."""


def no_config(path: Path) -> str:
    """The message about a `--config` that is no file: a similar name, or where there are some."""
    if path.exists():
        kind = "a folder" if path.is_dir() else "no regular file"
        return f"--config: {path} is {kind}; a YAML file is needed"
    close = meant(path) or nearest_file(path) or nearest(str(path), names())
    return f"--config: no such file: {path}{hint(close) or OWN_RECIPES}"


def no_class(base: str, value: str | None) -> tuple[str, str] | None:
    """The message about settings of a class that no earlier file or option names, and the first of them; else None."""
    try:
        found = ast.literal_eval(value or "")
    except (ValueError, SyntaxError):
        return None
    settings = found.get("init_args") if isinstance(found, dict) and "class_path" not in found else None
    if not settings or not isinstance(settings, dict):
        return None
    first = str(next(iter(settings)))
    return f"{first} is set before a {base} is chosen: what has its class_path goes first", first


def not_installed(message: str) -> str | None:
    """The line about a class of Lightning that lacks a package, from jsonargparse's message; None for any other."""
    if (found := NOT_INSTALLED.search(message)) is None:
        return None
    name = found["cls"].rpartition(".")[2]
    return f"{name} needs a package that is not installed: pip install {EXTRAS.get(name, found['needed'])}"
