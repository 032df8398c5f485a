"""Values in files of settings that follow from others, such as `data.seed`: the parser would ignore them silently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse._link_arguments import ActionLink

from guardlit.config.documents import compose, line_of


def ignored(parser: ArgumentParser, config: Namespace, files: Sequence[Path]) -> Iterator[str]:
    """One line for each value that differs from the one that it follows from.

    Args:
        parser: of the subcommand.
        config: what it parsed.
        files: that the configuration is from; each is valid YAML.
    """
    for action in parser._actions:
        if not isinstance(action, ActionLink):
            continue
        key, source = action.target[0], action.source[0][0]
        for file in files:
            given = _value(compose(file), key.split("."))
            if given is not None and yaml.safe_load(given.value) != config.get(key):
                follows = f"follows from {source}, which makes it {config.get(key)}"
                yield f"{file}:{line_of(given)}: {key}: {follows}; set {source} instead"


def _value(node: yaml.Node | None, keys: Sequence[str]) -> yaml.ScalarNode | None:
    for name in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        node = next((value for key, value in pairs if key.value == name), None)
    return node if isinstance(node, yaml.ScalarNode) else None
