"""Configuration files as entries that keep their comments, and what several merged ones come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from guardlit.config.documents import compose

CLASS = "class_path"


@dataclass(frozen=True)
class Entry:
    """What stands behind a key.

    Attributes:
        above: comments in the lines above the key.
        text: the rest of the key's line, and the lines of a list; without the lines of nested keys.
        below: comments under the value that belong to no further key.
        scalar: a plain value.
        nested: the entries of a mapping, of one in braces, too.
        inline: whether the mapping stands in braces, which `text` holds as well.
    """

    text: str
    above: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    scalar: str | None = None
    nested: dict[str, Entry] = field(default_factory=dict)
    inline: bool = False


Entries = dict[str, Entry]


class Lines:
    """The lines of a YAML file, and the entries in them.

    Args:
        file: a mapping in block style, whose comments stand above or behind what they are about.

    Attributes:
        header: the comment on top.
        entries: by key.
    """

    def __init__(self, file: Path) -> None:
        self._lines = file.read_text(encoding="utf-8").splitlines()
        root = compose(file)
        assert isinstance(root, yaml.MappingNode)
        start = root.start_mark.line
        self.header = tuple(line for line in self._lines[:start] if line.startswith("#"))
        self.entries = self._entries(root, end=len(self._lines), floor=start)

    def _entries(self, node: yaml.MappingNode, end: int, floor: int) -> Entries:
        """Entries of a mapping in block style, whose lines are `floor` to `end`."""
        found: Entries = {}
        for number, (key, value) in enumerate(node.value):
            line = key.start_mark.line
            above = self._above(line, key.start_mark.column, floor)
            last = number + 1 == len(node.value)
            until = end if last else node.value[number + 1][0].start_mark.line
            below_end = until if last else until - len(self._above(until, key.start_mark.column, line + 1))
            found[key.value] = replace(self._entry(key, value, below_end), above=above)
        return found

    def _entry(self, key: yaml.Node, value: yaml.Node, end: int) -> Entry:
        line, column = key.start_mark.line, key.start_mark.column
        behind = self._lines[line][key.end_mark.column + 1 :].strip()
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            return Entry(behind, nested=self._entries(value, end, line + 1))
        last = _last_line(value)
        text = "\n".join([behind, *(text[column:] for text in self._lines[line + 1 : last + 1])])
        rest = (text[column:] for text in self._lines[last + 1 : end])
        below = tuple(text.rstrip() for text in rest if text.lstrip().startswith("#"))
        if isinstance(value, yaml.MappingNode) and value.value:
            comment = self._lines[last][value.end_mark.column :].strip()
            parts = {k.value: Entry(_source(v), scalar=_scalar(v)) for k, v in value.value}
            first = next(iter(parts))
            parts[first] = replace(parts[first], above=(comment,) if comment else ())  # if they get a line each
            return Entry(text, below=below, nested=parts, inline=True)
        return Entry(text, below=below, scalar=_scalar(value))

    def _above(self, line: int, column: int, floor: int) -> tuple[str, ...]:
        """The comments right above a line that begin in its column."""
        first = line
        while first > floor and self._lines[first - 1].startswith(" " * column + "#"):
            first -= 1
        return tuple(text.strip() for text in self._lines[first:line])


def merged(earlier: Entries, later: Entries) -> Entries:
    """Entries as two `--config` files come to: later values win, and a class that replaces another starts afresh."""
    both = dict(earlier)
    for key, new in later.items():
        old = both.get(key)
        if old is None or not (old.nested and new.nested) or _replaces(old, new):
            both[key] = new
        else:
            texts = "" if new.inline or old.inline else new.text or old.text
            nested = merged(old.nested, new.nested)
            both[key] = Entry(texts, new.above or old.above, old.below + new.below, nested=nested)
    return both


def rendered(entries: Entries, indent: str = "") -> Iterator[str]:
    """The lines of entries."""
    for key, entry in entries.items():
        yield from (f"{indent}{comment}" for comment in entry.above)
        first, *rest = entry.text.split("\n")
        yield f"{indent}{key}: {first}".rstrip()
        yield from (f"{indent}{line}".rstrip() for line in rest)
        if entry.nested and not entry.inline:
            yield from rendered(entry.nested, f"{indent}  ")
        yield from (f"{indent}{comment}" for comment in entry.below)


def _replaces(old: Entry, new: Entry) -> bool:
    """Whether both are classes, and not the same."""
    before, after = (entry.nested[CLASS].scalar if CLASS in entry.nested else None for entry in (old, new))
    return after is not None and before != after


def _scalar(node: yaml.Node) -> str | None:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else None


def _source(node: yaml.Node) -> str:
    """A value within braces as it is written."""
    buffer, start, end = node.start_mark.buffer, node.start_mark.pointer, node.end_mark.pointer
    return (buffer or "")[start:end]


def _last_line(node: yaml.Node) -> int:
    """The last line of a value; a list in block style ends where its last item does."""
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _last_line(node.value[-1])
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        return _last_line(node.value[-1][1])
    return int(node.end_mark.line)
