"""Options that a user wrote for a class which a later file or option replaces by another class: they do not count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser

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
    for option, value in given_options(args):
        key = option.lstrip("-").removesuffix(".class_path")
        if option in CONFIG_OPTIONS:
            written.read(_composed(Path(value)), "", value)
        elif option.startswith("--") and not option.endswith("+"):
            written.read(_composed(value), key.replace(".init_args.", "."), None)
    return list(written.lines())


def _composed(source: Path | str) -> yaml.Node | None:
    try:
        if isinstance(source, Path):
            return compose(source)
        return yaml.compose(source, Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError):
        return None


class Replaced(NamedTuple):
    """A class that another one replaced, and both names; the options with the text and place of each."""

    key: str
    earlier: str
    place: str
    later: str
    options: dict[str, tuple[str, str]]


class Written:
    """What files and options say so far, by key.

    Args:
        parser: whose defaults name the classes that nothing else does.
    """

    def __init__(self, parser: ArgumentParser) -> None:
        self._parser = parser
        self._dropped: list[Replaced] = []
        self._values: dict[str, tuple[str, str]] = {}
        """Text and place; for a class, its name."""

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
                self._values[key] = text, _place(node, key, file)
                return
            for number, item in enumerate(node.value):
                self.read(item, f"{key}.{number}", file)
        elif isinstance(node, yaml.ScalarNode):
            self._set(key, node.value, _place(node, key, file), quiet=node.tag.endswith(":null"))

    def lines(self) -> Iterator[str]:
        """One line a replaced class; options that the new one was given too are not lost."""
        for key, earlier, at, later, options in self._dropped:
            gone = {k: found for k, found in options.items() if k not in self._values}
            lost = [f"{k[len(key) + 1 :]}={v} ({place})" for k, (v, place) in gone.items()]
            if lost:
                now = self._values.get(key, (later, ""))[0]
                about = f"{key} is {_short(now)}; dropped what was set for {_short(earlier)}: {', '.join(lost[:MOST])}"
                about += f"{f' and {len(lost) - MOST} more' if len(lost) > MOST else ''}"
                if not at.startswith("--") and any(place.startswith("--") for _, place in gone.values()):
                    about += f"; give --{key} before its options"  # perhaps they were meant for it
                yield about

    def _set(self, key: str, text: str, place: str, quiet: bool) -> None:
        options = [name for name in self._values if name.startswith(f"{key}.")]
        earlier = self._values[key][0] if key in self._values else self._default(key) if options else None
        if options and earlier and not _same(earlier, text):
            if not quiet:
                at = self._values.get(key, ("", ""))[1]
                self._dropped.append(Replaced(key, earlier, at, text, {name: self._values[name] for name in options}))
            self._forget(key)
        self._values[key] = text, place

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
