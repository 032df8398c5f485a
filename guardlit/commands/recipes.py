"""`guardlit recipes`: the configurations that come with guardlit, what is known of each, and a copy to edit."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from guardlit.assets.recipes import names
from guardlit.config.console import Parser, show, table
from guardlit.config.nearest import nearest
from guardlit.errors import GuardlitError
from guardlit.recipes.copying import copy
from guardlit.recipes.evidence import LEVELS, NONE, Evidence, evidence_of
from guardlit.recipes.recipe import GOLD, METHOD, PRESET, RUN, Recipe

HEADER = ("recipe", "model", "proxy", "objective", "GPU memory", "evidence")


def main(args: list[str]) -> None:
    """Run `guardlit recipes`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: an unknown recipe, or a file that is there already or cannot be written.
    """
    options = _parse(args[1:])
    if options.copy is not None:
        _copy(options.names, options.copy)
    elif options.names:
        for name in options.names:
            _show_one(Recipe((name,)))
    else:
        _show_all([Recipe((name,)) for name in names()])


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = Parser("guardlit recipes", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes as for --config; all by default")
    parser.add_argument(
        "--copy", type=Path, metavar="FILE", help="write them, merged in this order, as one commented file to edit"
    )
    options = parser.parse(args)
    for name in options.names:
        if name not in names():
            close = nearest(name, names())
            hint = f"did you mean {close}?" if close else "`guardlit recipes` lists them"
            raise GuardlitError(f"there is no recipe {name!r}: {hint}")
    if options.copy is not None and not options.names:
        raise GuardlitError("--copy needs the name of a recipe: guardlit recipes NAME --copy run.yaml")
    return options


def _copy(chosen: Sequence[str], path: Path) -> None:
    if path.exists():
        raise GuardlitError(f"--copy: {path} exists; choose another name or remove it")
    try:
        copy(Recipe(tuple(chosen)), path)
    except OSError as error:
        raise GuardlitError(f"--copy: {path} cannot be written: {error.strerror}") from error
    print(path)


def _show_all(recipes: Sequence[Recipe]) -> None:
    found = {recipe: evidence_of(recipe) for recipe in recipes if recipe.kind == RUN}
    rows = [
        (recipe.names[0], recipe.model, recipe.proxy, recipe.objective, evidence.memory_text, evidence.level)
        for recipe, evidence in found.items()
    ]
    show("Runs: guardlit fit --config NAME", table(HEADER, rows, left=True))
    show("GPU memory: by `guardlit plan`, without the proxy's network", *_levels(found.values()), "")
    for kind, title in (
        (METHOD, "With another method: guardlit fit --config NAME --config methods/velocity_norm"),
        (PRESET, "For a GPU: guardlit fit --config NAME --config gpu/24gb"),
        (GOLD, "Gold scores: guardlit evaluate --config NAME --config gold_tiny --ckpt last"),
    ):
        others = [(recipe.names[0], recipe.summary) for recipe in recipes if recipe.kind == kind]
        show(title, table(("recipe", "what it is for"), others, left=True))


def _levels(found: Iterable[Evidence]) -> list[str]:
    """What the levels mean that occur."""
    occurring = {evidence.level for evidence in found}
    meanings = {**LEVELS, NONE: "nothing is recorded of its present settings"}
    return [f"evidence {level}: {meaning}" for level, meaning in meanings.items() if level in occurring]


def _show_one(recipe: Recipe) -> None:
    (name,) = recipe.names
    lines = [f"{name}: {recipe.summary}", f"made of    {', '.join(recipe.files)}"]
    if recipe.kind == RUN:
        evidence = evidence_of(recipe)
        lines += [
            f"model      {recipe.model}",
            f"proxy      {recipe.proxy}",
            f"objective  {recipe.objective}",
            f"GPU memory {evidence.memory_text} by `guardlit plan`, scorers not counted",
            f"evidence   {evidence.level}",
            *(f"  {level}: {LEVELS[level]}; {_facts(proof)}" for level, proof in evidence.proofs.items()),
        ]
    show(*lines)


def _facts(proof: dict[str, object] | object) -> str:
    assert isinstance(proof, dict)
    return ", ".join(f"{key} {value}" for key, value in proof.items() if key != "settings")
