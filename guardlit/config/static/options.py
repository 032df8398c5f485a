"""The options of a command as the source files of its classes give them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from guardlit.config.static.sources import Parameter, Source, UnknownSourceError, resolve

PLAIN = {"Any", "Literal", "None", "Optional", "Union", "bool", "float", "int", "str", "list", "tuple", "Sequence"}
"""Names in the annotation of a value that has no options beneath it."""
REPLACEABLE = frozenset({"GroupAdvantage"})
"""Data classes that may be replaced by a subclass, by name; of others a configuration gives the settings only."""


@dataclass(frozen=True)
class Option:
    """An option of a command.

    Attributes:
        key: dotted.
        parameter: that it sets.
    """

    key: str
    parameter: Parameter

    @property
    def is_plain(self) -> bool:
        """Whether nothing lies beneath it; False where the annotation does not say so."""
        words = re.sub(r"'[^']*'", "", self.parameter.annotation)
        return set(re.findall(r"[A-Za-z_]\w*", words)) <= PLAIN

    @property
    def base(self) -> Source | None:
        """The class that its value is a subclass of, if the annotation is one class, or one and None."""
        return _class(self.parameter)


@dataclass(frozen=True)
class Command:
    """A command of LightningCLI.

    Attributes:
        sections: classes by the key of their options, such as `model`.
        name: of the command, and of the method of the first section's class whose parameters are its own options.
        skipped: parameters of the method that are no options.
        linked: keys that follow from others.
    """

    name: str
    sections: Mapping[str, str]
    skipped: frozenset[str]
    linked: frozenset[str]

    def own(self) -> list[Option]:
        """Its own options: the parameters of its method."""
        trainer = next(iter(self.sections.values()))
        parameters = _source(trainer).method(self.name)
        return [o for p in parameters if p.name not in self.skipped for o in expanded(Option(p.name, p))]

    def section(self, name: str) -> list[Option]:
        """The options of a section."""
        found = [Option(f"{name}.{p.name}", p) for p in _source(self.sections[name]).parameters()]
        return [o for option in found if option.key not in self.linked for o in expanded(option)]

    def options(self) -> list[Option]:
        """All of them."""
        return [*self.own(), *(option for name in self.sections for option in self.section(name))]


def expanded(option: Option) -> Iterator[Option]:
    """An option, or those of the data class that it is a group of."""
    base = None if "|" in option.parameter.annotation else option.base
    if base is None or not base.is_dataclass or base.node.name in REPLACEABLE:
        yield option
        return
    for parameter in base.parameters():
        yield from expanded(Option(f"{option.key}.{parameter.name}", parameter))


def class_named(name: str) -> Source | None:
    """A class of guardlit by its short name or import path; None if its source is not found."""
    try:
        return _source(name if "." in name else f"guardlit.{name}")
    except UnknownSourceError:
        return None


def subclasses(base: Source, names: Sequence[str]) -> list[str]:
    """Those of some public names of guardlit that are concrete subclasses of a base."""
    found = [(name, class_named(name)) for name in names]
    return [n for n, s in found if s and base.path in {a.path for a in s.ancestors()} and not s.is_abstract]


def _class(parameter: Parameter) -> Source | None:
    names = re.findall(r"[\w.]+", parameter.annotation.replace("None", ""))
    if len(names) != 1 or names[0] in PLAIN:
        return None
    try:
        return resolve(parameter.module, names[0])
    except UnknownSourceError:
        return None


def _source(path: str) -> Source:
    module, _, name = path.rpartition(".")
    return resolve(module, name)
