"""Configuration files as YAML: the mistakes that have a line number, whatever the values mean."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import yaml

Mistake = tuple[yaml.Node, str]
"""The node that a mistake is at, and what is wrong with it."""

PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ["map", "seq", "str", "int", "float", "bool", "null", "timestamp"]}
MERGE, NULL, TEXT = (f"tag:yaml.org,2002:{kind}" for kind in ("merge", "null", "str"))
MOST_NODES = 100_000
"""What a file may come to once its aliases are written out; a real one has a few hundred."""
MOST_DIGITS = 300


def compose(path: Path) -> yaml.Node | None:
    """A YAML file as nodes that know their lines.

    Raises:
        OSError: a file that cannot be read.
        yaml.YAMLError: one that is no YAML.
    """
    if path.exists() and not path.is_file():  # to read a pipe waits for a writer, and a device may have no end
        raise OSError(0, "it is no regular file")
    data = path.read_bytes()
    try:
        return yaml.compose(data.decode("utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        mark = yaml.Mark(str(path), error.start, data.count(b"\n", 0, error.start), 0, None, 0)
        reason = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise yaml.MarkedYAMLError(problem=reason, problem_mark=mark) from error
    except yaml.reader.ReaderError as error:
        line = data.decode("utf-8").count("\n", 0, error.position)
        mark = yaml.Mark(str(path), error.position, line, 0, None, 0)
        code = error.character if isinstance(error.character, int) else ord(error.character)
        reason = f"character U+{code:04X} cannot stand in YAML; remove it"
        raise yaml.MarkedYAMLError(problem=reason, problem_mark=mark) from error
    except RecursionError as error:
        raise yaml.YAMLError("it is nested hundreds of levels deep") from error


def check_config_file(path: Path, sections: Collection[str]) -> str | None:
    """What is wrong with a configuration file as YAML, whatever its values mean; None if nothing.

    Args:
        path: an existing file.
        sections: dotted keys that hold further keys.
    """
    try:
        root = compose(path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        return f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {_problem(error)}"
    except yaml.YAMLError as error:
        return f"{path}: not valid YAML: {error}"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}; a YAML file is needed"
    if not isinstance(root, yaml.MappingNode):
        known = ", ".join(f"{section}:" for section in sorted(sections) if "." not in section)
        return f"{path}: expected the sections {known}; found {describe(root)}"
    for node, mistake in _mistakes(root, sections):
        return f"{path}:{line_of(node)}: {mistake}"
    return None


def _problem(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, with what was expected where the library says so apart."""
    problem = str(error.problem)
    return f"{error.context}, {problem}" if problem.startswith("but ") else problem


def describe(node: yaml.Node | None) -> str:
    """A node in a message."""
    if node is None:
        return "nothing"
    if not isinstance(node, yaml.ScalarNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    return repr(node.value) if node.tag == TEXT else str(node.value or "null")


def line_of(node: yaml.Node) -> int:
    """The line that a node begins on, from 1."""
    return int(node.start_mark.line) + 1


def _mistakes(root: yaml.MappingNode, sections: Collection[str]) -> Iterator[Mistake]:
    yield from _unending(root)
    for node in _nodes(root):
        yield from _odd(node)
        if isinstance(node, yaml.MappingNode):
            yield from _odd_keys(node)
            yield from _odd_class(node)
    yield from _odd_sections(root, "", sections)


def _nodes(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node once, however many aliases name it, in the order of the file."""
    seen: set[int] = set()
    todo = [root]
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            todo += reversed(_children(node))


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _unending(root: yaml.Node) -> list[Mistake]:
    """Aliases of a node within that node, and so many that what they stand for fills the memory."""
    sizes: dict[int, int] = {}
    mistakes: list[Mistake] = []

    def measure(node: yaml.Node, above: frozenset[int]) -> int:
        if id(node) in above:
            mistakes.append((node, "an alias in here stands for what it is a part of; write the value out"))
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = 1 + sum(measure(child, above | {id(node)}) for child in _children(node))
        return sizes[id(node)]

    total = measure(root, frozenset())
    if total > MOST_NODES:
        mistakes.append((root, f"its aliases stand for {total} values, more than the {MOST_NODES} that are read"))
    return mistakes


def _odd(node: yaml.Node) -> Iterator[Mistake]:
    """Tags that make other things than plain values, and integers that nothing can hold."""
    if node.tag not in PLAIN | {MERGE}:
        yield node, f"the tag {node.tag} is not read here; write plain text, numbers, lists and mappings"
    elif node.tag.endswith(":int") and len(node.value) > MOST_DIGITS:
        yield node, f"an integer of {len(node.value)} digits; no setting is that large"


def _odd_keys(node: yaml.MappingNode) -> Iterator[Mistake]:
    """Keys that are no text, and equal ones, of which YAML silently keeps the last."""
    seen: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if key.tag == MERGE:
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            if not all(isinstance(part, yaml.MappingNode) for part in merged):
                yield key, f"<<: expected a mapping to merge, found {describe(value)}"
        elif not isinstance(key, yaml.ScalarNode) or key.tag != TEXT:
            yield key, f"a key must be text, found {describe(key)}"
        elif not key.value.strip():
            yield key, "found an empty key; write the name of a setting"
        elif key.value in seen:
            yield key, f"key {key.value!r} is given twice, first on line {line_of(seen[key.value])}"
        else:
            seen[key.value] = key


def _odd_class(node: yaml.MappingNode) -> Iterator[Mistake]:
    """Of `class_path` and `init_args`, which mean the same wherever they stand."""
    named = {key.value: key for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
    for name in named.keys() - {"class_path", "init_args", "dict_kwargs"} if "class_path" in named else ():
        yield named[name], f"found {name!r} next to class_path; parameters of the class stand in init_args"
    for key, value in node.value:
        if key.value == "class_path" and value.tag != TEXT:
            yield value, f"class_path: expected the name of a class, found {describe(value)}"
        if key.value == "init_args" and not (isinstance(value, yaml.MappingNode) or value.tag == NULL):
            yield value, f"init_args: expected a mapping of parameters, found {describe(value)}"


def _odd_sections(node: yaml.Node, prefix: str, sections: Collection[str]) -> Iterator[Mistake]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if " " in name:
            yield key, f"found the key {key.value!r}; names of settings have no spaces"
        if name in sections and isinstance(value, yaml.MappingNode):
            yield from _odd_sections(value, f"{name}.", sections)
        elif name in sections and value.tag != TEXT and not (value.tag == NULL and not prefix):
            yield key, f"{name}: expected a mapping of settings, found {describe(value)}"
