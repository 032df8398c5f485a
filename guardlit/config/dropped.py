"""Options that a user wrote for a class which a later file or option replaces by another class: they do not count.

Nothing is said where a file replaces a class of the files that it builds on: that is its purpose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser

from guardlit.config.bases import bases
from guardlit.config.documents import compose, line_of
from guardlit.config.locate import CONFIG_OPTIONS, given_options
from guardlit.config.nearest import import_class

MOST = 4
"""Options that one line names."""


def dropped(parser: ArgumentParser, args: Sequence[str]) -> list[str]:
    """One line for each class that another one replaced: the key, both classes, the dropped options and their places.

    Args:
        parser: of the subcommand.
        args: the command line after the subcommand, with bases in front of their files.
    """
    written = Written(parser)
    given = list(given_options(args))
    read_for = iter(_read_for([Path(value) for option, value in given if option in CONFIG_OPTIONS]))
    for option, value in given:
        key = option.lstrip("-").removesuffix(".class_path")
        if option in CONFIG_OPTIONS:
            written.source = next(read_for)
            written.read(_composed(Path(value)), "", value)
        elif option.startswith("--") and not option.endswith("+"):
            written.source = None
            written.read(_composed(value), key.replace(".init_args.", "."), None)
    return list(written.lines())


def _read_for(files: Sequence[Path]) -> list[Path]:
    """For each file the one that the user named: itself, or the one behind it that builds on it."""
    found: list[Path] = []
    while len(found) < len(files):
        named = files[len(files) - 1 - len(found)]
        found += [named] * (1 + len(bases(named, [])))
    return found[len(files) - 1 :: -1]


def _composed(source: Path | str) -> yaml.Node | None:
    try:
        if isinstance(source, Path):
            return compose(source)
        return yaml.compose(source, Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError):
        return None


class Value(NamedTuple):
    """A text, where it stands, and the file that the user named to have it read; None for an option."""

    text: str
    place: str
    source: Path | None


class Replaced(NamedTuple):
    """A class that another one replaced, and both names; the options with the text and place of each."""

    key: str
    earlier: str
    place: str
    later: str
    options: dict[str, Value]


class Written:
    """What files and options say so far, by key.

    Args:
        parser: whose defaults name the classes that nothing else does.
    """

    def __init__(self, parser: ArgumentParser) -> None:
        self._parser = parser
        self._dropped: list[Replaced] = []
        self._values: dict[str, Value] = {}
        self.source: Path | None = None
        """The file that the user named, for what is read now."""

    def read(self, node: yaml.Node | None, key: str, file: str | None) -> None:
        """Take over a value and everything beneath it.

        Args:
            node: the value; None is skipped.
            key: its dotted key, without `init_args`.
            file: that has it; None for an option.
        """
        if isinstance(node, yaml.MappingNode):
            pairs = {k.value: v for k, v in node.value if isinstance(k, yaml.ScalarNode)}
            if "class_path" in pairs:
                self.read(pairs["class_path"], key, file)
            options = pairs.get("init_args", None if "class_path" in pairs else node)
            for name, item in _items(options):
                self.read(item, f"{key}.{name}" if key else name, file)
        elif isinstance(node, yaml.SequenceNode):
            self._forget(key)  # a list replaces a list as its own text says
            if all(isinstance(item, yaml.ScalarNode) for item in node.value):
                text = f"[{', '.join(item.value for item in node.value)}]"
                self._values[key] = Value(text, _place(node, key, file), self.source)
                return
            for number, item in enumerate(node.value):
                self.read(item, f"{key}.{number}", file)
        elif isinstance(node, yaml.ScalarNode):
            self._set(key, node.value, _place(node, key, file), quiet=node.tag.endswith(":null"))

    def lines(self) -> Iterator[str]:
        """One line a replaced class; options that the new one was given too are not lost."""
        for key, earlier, at, later, options in self._dropped:
            gone = {k: found for k, found in options.items() if k not in self._values}
            lost = [f"{k[len(key) + 1 :]}={value.text} ({value.place})" for k, value in gone.items()]
            if lost:
                now = self._values[key].text if key in self._values else later
                about = f"{key} is {_short(now)}; dropped what was set for {_short(earlier)}: {', '.join(lost[:MOST])}"
                about += f"{f' and {len(lost) - MOST} more' if len(lost) > MOST else ''}"
                if not at.startswith("--") and any(value.source is None for value in gone.values()):
                    about += f"; give --{key} before its options"  # perhaps they were meant for it
                yield about

    def _set(self, key: str, text: str, place: str, quiet: bool) -> None:
        options = [name for name in self._values if name.startswith(f"{key}.")]
        before = self._values.get(key)
        earlier = before.text if before else self._default(key) if options else None
        if options and earlier and not _same(earlier, text):
            others = {name: self._values[name] for name in options if not self._same_source(name)}
            if others and not quiet:
                self._dropped.append(Replaced(key, earlier, before.place if before else "", text, others))
            self._forget(key)
        self._values[key] = Value(text, place, self.source)

    def _same_source(self, name: str) -> bool:
        return self.source is not None and self._values[name].source == self.source

    def _forget(self, key: str) -> None:
        self._values = {k: v for k, v in self._values.items() if k != key and not k.startswith(f"{key}.")}

    def _default(self, key: str) -> str | None:
        value: Any = self._parser.get_defaults().get(key)
        return value.get("class_path") if hasattr(value, "get") else None


def _place(node: yaml.Node, key: str, file: str | None) -> str:
    return f"{file}:{line_of(node)}" if file else f"--{key}"


def _items(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(key, yaml.ScalarNode):
            yield key.value, value


def _same(one: str, other: str) -> bool:
    """Whether two names are of one class: a module in front may be left out, or be another that has it too."""
    if f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}"):
        return True
    return (found := import_class(one)) is not None and found is import_class(other)


def _short(path: str) -> str:
    return path.rpartition(".")[2]
