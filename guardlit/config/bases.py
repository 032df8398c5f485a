"""Configuration files that build on others: `base: [sd35_pickscore, my_reward.yaml]` at the top of one.

It means what `--config sd35_pickscore --config my_reward.yaml` in front of it would: later values win, nested keys
merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from guardlit.assets.recipes import file_of, names, resolved
from guardlit.config.documents import compose
from guardlit.config.locate import CONFIG_OPTIONS
from guardlit.errors import GuardlitError

KEY = "base"


def expand(args: Sequence[str]) -> list[str]:
    """A command line with each `--config` as a file, and in front of it the files that it builds on, as options, too.

    Raises:
        GuardlitError: naming the line of a base that is not there, is no list of files, or builds on itself; `--base`.
    """
    expanded: list[str] = []
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        option, equals, value = arg.partition("=")
        if option in CONFIG_OPTIONS and (equals or rest):
            name = value if equals else rest.pop(0)
            if not name:
                raise GuardlitError(f"{option}: found nothing where the name of a YAML file belongs")
            file = resolved(name)
            below = [word for base in bases(file, []) for word in (option, str(base))]
            if (
                below and expanded[-len(below) :] != below
            ):  # unless they are there: a command passes on what it expanded
                expanded += below
            expanded += [option, str(file)]
        elif option == f"--{KEY}":
            raise GuardlitError(f"--{KEY} belongs at the top of a configuration file; here, use {CONFIG_OPTIONS[0]}")
        else:
            expanded.append(arg)
    return expanded


def bases(file: Path, above: Sequence[Path]) -> list[Path]:
    """All files that one builds on, the farthest first: recipes by name, and files relative to the one that has them.

    Args:
        file: a configuration; one that cannot be read has none, and is complained about elsewhere.
        above: the files that led to it.
    """
    found: list[Path] = []
    for line, name in _named(file):
        base = file.parent / name
        if name in names() and not base.is_file():
            base = file_of(name)
        where = f"{file}:{line}: {KEY}: "
        if not base.is_file():
            raise GuardlitError(f"{where}there is no file {base}, and no recipe of this name")
        if base.resolve() in (path.resolve() for path in (*above, file)):
            raise GuardlitError(f"{where}{base} builds on itself, by way of {file}")
        found += [*bases(base, [*above, file]), base]
    return found


def _named(file: Path) -> list[tuple[int, str]]:
    """Line and name of each base that a file gives."""
    try:
        root = compose(file)
    except (OSError, yaml.YAMLError):
        return []
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    for key, value in pairs:
        if key.value != KEY or value.tag.endswith(":null"):  # a run's own config.yaml says that it builds on nothing
            continue
        items = value.value if isinstance(value, yaml.SequenceNode) else [value]
        for item in items:
            if not isinstance(item, yaml.ScalarNode) or not item.tag.endswith(":str"):
                line = value.start_mark.line + 1
                raise GuardlitError(f"{file}:{line}: {KEY}: expected a file or a list of files")
        return [(item.start_mark.line + 1, item.value) for item in items]
    return []
