"""A recipe as one file to edit: self-contained, with every comment of the files that it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from guardlit import __version__
from guardlit.files import atomic_write
from guardlit.recipes.entries import rendered
from guardlit.recipes.recipe import RUN, Recipe


def copy(recipe: Recipe, path: Path) -> None:
    """Write a recipe to a file; raises `OSError` where it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text(recipe, path).encode())


def text(recipe: Recipe, path: Path) -> str:
    """A recipe as one file, with the comments on top of all its files.

    Args:
        recipe: one or several names.
        path: that the file's own command names.
    """
    return "\n".join([*_top(recipe, path), *_sections(recipe)]) + "\n"


def _top(recipe: Recipe, path: Path) -> Iterator[str]:
    names = " ".join(recipe.names)
    yield f"# {recipe.summary}."
    yield "#"
    if recipe.kind == RUN:
        yield f"#   guardlit fit --config {path}"
        yield "#"
    yield f"# Written by `guardlit recipes {names} --copy {path}` of guardlit {__version__}."
    yield "# It builds on no other file: edit it. The files that it is made of begin as follows. Of values"
    yield "# that several of them set, the last one's is below."
    for name, lines in recipe.files.items():
        yield "#"
        yield f"# {name}"
        yield from (f"#   {line.removeprefix('#').removeprefix(' ')}".rstrip() for line in lines.header)


def _sections(recipe: Recipe) -> Iterator[str]:
    for key, entry in recipe.entries.items():
        yield ""
        yield from rendered({key: entry})
