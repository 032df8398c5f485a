"""Every key of a configuration: what the parser of `guardlit fit` takes, and the parameters of the classes it names."""

from __future__ import annotations

import argparse
import functools
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import guardlit_callbacks
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

from guardlit.commands.lightning_cli import GuardlitCLI
from guardlit.config.nearest import class_parser, classes_in, concrete_subclasses, import_class
from guardlit.training.limits.arguments import ARGUMENTS
from site_builder.marking import marked

CALLBACKS = (
    *(f"guardlit_callbacks.{name}" for name in guardlit_callbacks.__all__),
    "guardlit.training.recovery.rollback.Rollback",
)
BY_MACHINE = {"trainer.accelerator": "cuda, or cpu where there is none"}
"""Defaults that would be those of the machine that builds the site."""
OTHER = "top level"
HEADS = {
    OTHER: "Next to the three sections, a file or a command line has these keys.",
    "model": "The model, its reward and how they train: the parameters of `guardlit.GRPOModule`.",
    "data": "The prompts and the sizes of a round: the parameters of `guardlit.PromptDataModule`.",
    "trainer": "The parameters of `guardlit.Trainer`. [trainer.md](trainer.md) says which values work and why others "
    "are refused, and lists callbacks, loggers, optimizers and learning-rate schedules.",
}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: without what stands before it.
        kind: its type as text.
        default: as YAML; empty where the key is required.
        text: what it does, in Markdown.
        classes: that its value may be an instance of.
    """

    name: str
    kind: str
    default: str
    text: str
    classes: tuple[type, ...]

    def entry(self, prefix: str = "") -> str:
        """Its entry on the page."""
        facts = f":type: `{self.kind}`\n:default: {f'`{self.default}`' if self.default else 'required'}"
        ours = sorted({cls.__name__ for base in self.classes for cls in _ours(base)})
        links = f"\n\nOne of {', '.join(f'[{name}](#{name.lower()})' for name in ours)}." if ours else ""
        return f"````{{confval}} {prefix}{self.name}\n{facts}\n\n{self.text}{links}\n````\n"


class _BuiltParser(Exception):  # noqa: N818 - not an error
    """Ends a `_BuildingCLI` once it has a parser."""

    def __init__(self, parser: ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


class _BuildingCLI(GuardlitCLI):
    """Builds the parser, and parses nothing."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Stop here."""
        raise _BuiltParser(parser)


def fit_keys() -> list[Key]:
    """The keys of `guardlit fit`, dotted."""
    with mock.patch.object(sys, "argv", ["guardlit", "fit"]):
        try:
            _BuildingCLI()
        except _BuiltParser as built:
            actions = built.parser._actions
    (commands,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return list(_keys(commands.choices["fit"]))


@functools.cache
def keys() -> str:
    """The page: sections of a file, then the classes that its values name.

    Call it before autodoc has seen a class: its `autodoc_preserve_defaults` changes what `inspect.signature` says.
    """
    found = fit_keys()
    sections: dict[str, list[Key]] = {head: [] for head in HEADS}
    for key in found:
        section = key.name.partition(".")[0] if "." in key.name else OTHER
        sections[section].append(key)
    parts = [f"## {head}\n\n{HEADS[head]}\n\n{_entries(of)}" for head, of in sections.items()]
    return "\n".join([*parts, *_classes(found)])


def _classes(found: Iterable[Key]) -> Iterator[str]:
    """A section for each key whose value is one of our classes, and for each parameter of such a class."""
    todo = [(key.name, base) for key in found for base in key.classes]
    seen: set[type] = set()
    for place, base in todo:  # which grows: the classes' own parameters
        concrete = sorted(_ours(base) - seen, key=lambda cls: cls.__name__)
        seen |= {*concrete}
        if not concrete:
            continue
        yield f"## Classes: {place}\n\n" + "\n".join(_class_sections(concrete))
        todo += [(f"{cls.__name__}.{key.name}", b) for cls in concrete for key in _parameters(cls) for b in key.classes]


def _class_sections(classes: list[type]) -> Iterator[str]:
    """What several classes share is said once, before what each adds."""
    parameters = {cls: _parameters(cls) for cls in classes}
    first = parameters[classes[0]]
    shared = [key for key in first if all(key in of for of in parameters.values())] if len(classes) > 2 else []
    if shared:
        yield f"Each of these classes takes:\n\n{_entries(shared, f'{_common_base(classes)}.')}"
    for cls, of in parameters.items():
        summary = (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")
        own = [key for key in of if key not in shared]
        yield f"### {cls.__name__}\n\n{summary}\n\n{_entries(own, f'{cls.__name__}.')}"


def _common_base(classes: list[type]) -> str:
    shared = [base for base in classes[0].__mro__ if all(issubclass(cls, base) for cls in classes)]
    return shared[0].__name__


def _entries(of: Iterable[Key], prefix: str = "") -> str:
    return "\n".join(key.entry(prefix) for key in of)


def _ours(base: type) -> set[type]:
    """Classes of guardlit that a key takes, by name or import path."""
    public = {cls for cls in concrete_subclasses(base) if not cls.__name__.startswith("_")}
    if base is Callback:
        return public & {cls for path in CALLBACKS if (cls := import_class(path))}
    return {cls for cls in public if cls.__module__.startswith("guardlit.")}


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _parameters(cls: type) -> list[Key]:
    return list(_keys(class_parser(_path(cls))))


def _keys(parser: ArgumentParser) -> Iterator[Key]:
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        if hint is None or action.dest.endswith(".help") or action.dest == "help":
            continue
        head, _, name = action.dest.partition(".")
        text = ARGUMENTS[name].describe() if head == "trainer" and name in ARGUMENTS else str(action.help or "")
        default = "" if action.required else BY_MACHINE.get(action.dest, _written(action.default))
        yield Key(action.dest, _type(hint), default, marked(text), tuple(classes_in(hint)))


def _type(hint: Any) -> str:
    """A type without the modules of its names."""
    text = hint.__name__ if inspect.isclass(hint) else str(hint)
    return re.sub(r"(?:\b[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text).replace("NoneType", "null").replace("None", "null")


def _written(default: Any) -> str:
    """A default as a YAML file has it."""
    if isinstance(default, dict) and set(default) == {"class_path"}:
        default = default["class_path"].rpartition(".")[2]
    try:
        return yaml.safe_dump(default, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    except yaml.YAMLError:
        return str(default)
