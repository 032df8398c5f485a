"""Recipes: the configuration files that come with guardlit, by name, such as `sd35_pickscore` or `gpu/24gb`."""

from __future__ import annotations

from functools import cache
from pathlib import Path

SUFFIX = ".yaml"


@cache
def folder() -> Path:
    """The folder that holds them: in the installed package, or next to it in a clone."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


@cache
def names() -> tuple[str, ...]:
    """All names, sorted; those of parts, from which others are made, included."""
    files = sorted(folder().rglob(f"*{SUFFIX}"))
    return tuple(file.relative_to(folder()).with_suffix("").as_posix() for file in files)


def file_of(name: str) -> Path:
    """The file of a recipe."""
    return folder() / f"{name}{SUFFIX}"


def resolved(given: str) -> Path:
    """The file that a value of `--config` means: the one at this path, else the recipe of this name."""
    path = Path(given)
    return file_of(given) if given in names() and (path.is_dir() or not path.exists()) else path


def meant(path: Path) -> str | None:
    """The recipe that the path of a missing file probably means, such as `gpu/24gb` for `configs/gpu/24gb.yaml`."""
    parts = path.with_suffix("").parts
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    endings = (name for name in names() if name.endswith(f"/{ends[-1]}"))
    return next((end for end in ends if end in names()), None) or next(endings, None)
