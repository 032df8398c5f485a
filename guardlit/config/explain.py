"""One line out of a jsonargparse message: the place, what was found there, what would be right.

jsonargparse reports a mistake as an indented outline of every type it tried. Here the entry that says most is taken
from it, the place where the value was given is looked up (a file and its line, an option, an environment variable)
and the nearest name that would have been right is added.
"""

from __future__ import annotations

import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser

from guardlit.config.bases import KEY
from guardlit.config.classes import only_settings, parameter_classes, unfit_class
from guardlit.config.locate import config_files, place
from guardlit.config.missing import no_class, no_config, not_installed
from guardlit.config.nearest import (
    class_parser,
    concrete_subclasses,
    hint,
    keys_of,
    nearest,
    nearest_key,
    nearest_literal,
)
from guardlit.config.nulls import Null
from guardlit.config.replacing import nearest_logger

TYPE_NAMES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "Iterable": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}
NOISE = re.compile(
    "Does not validate|Subtypes:|Given value type|Errors:|Expected a path|Subclass types expect|a class path|a dict "
)
EXPECTED = re.compile(r"Expected an? (<class .+>|typing\.Literal.*|tuple .*)$")
RESTRICTED = re.compile(r"Not of type \w+: does not conform to restriction v>=(\S+) and v<=(\S+)")
NOT_A_SUBCLASS = re.compile(r"Not a valid subclass of (\w+)")
NOT_A_CLASS = re.compile(
    r"Expected a dot import path string: (?P<short>.+)|Import path (?P<other>\S+) does not|"
    r"Expected an instantiatable class, but (?P<abstract>\S+) is|No module named|module '.+' has no attribute|"
    r"Unexpected import path format: (?P<odd>.+)"
)


@dataclass(frozen=True)
class Finding:
    """One entry of jsonargparse's outline.

    Attributes:
        frames: what it is nested in, from the outside: ("key", "model.reward"), ("class", "pkg.Pick"), ("key", "path").
        text: what is wrong there.
        value: the value that was tried, as far as the outline says.
    """

    frames: tuple[tuple[str, str], ...]
    text: str
    value: str | None = None

    @property
    def key(self) -> str:
        """The key in the configuration."""
        return self.frames[0][1]

    @property
    def keys(self) -> list[str]:
        """The key in the configuration, and the parameters of the classes on the way."""
        return [name for kind, name in self.frames if kind == "key"]

    @property
    def classes(self) -> list[str]:
        """Import paths of the classes on the way."""
        return [name for kind, name in self.frames if kind == "class"]

    @property
    def inner_key(self) -> str | None:
        """The parameter of the last class, if the mistake lies in a parameter of a class."""
        kind, name = self.frames[-1]
        return name if kind == "key" and self.classes else None


@dataclass(frozen=True)
class Verdict:
    """The message about a finding, and what to look up for its place: a key, a value or both, first or last given."""

    text: str
    name: str | None = None
    value: str | None = None
    first: bool = False


def explain(parser: ArgumentParser, message: str, args: Sequence[str]) -> str:
    """Condense a message of jsonargparse about a mistake of the user.

    Args:
        parser: of the subcommand.
        message: of any number of lines.
        args: the command line after the subcommand.

    Returns:
        Place, what was found and what would be right, in one line; the message itself where it is of no known form.
    """
    if found := re.match(r"unrecognized arguments: ([^\s=]+)", message):
        return _unknown_argument(parser, found[1])
    if found := re.match(r"Option '(.+)' is not accepted", message):
        where = place(parser, args, found[1], None, None)
        return f"{where}unknown key{hint(nearest_key(found[1], [*keys_of(parser), KEY]))}"
    if found := re.match(r"the following arguments are required: (.+)", message):
        return f"missing {found[1]}: give --{found[1].split(', ')[0]} or set it in a --config file"
    if message.startswith('Parser key "config": '):
        for missing in (file for file in config_files(args) if not file.is_file()):
            return no_config(missing)
    if found := re.search(r"Unable to load config ['\"](.*)['\"]", message):
        key = message.split('"')[1]
        where = place(parser, args, key, None, found[1])
        return f"{where}expected a mapping of settings, or a file of them, found {found[1]!r}"
    findings = list(outline(message))
    if not findings:
        return message
    depth = max(len(finding.frames) for finding in findings)
    deepest = [finding for finding in findings if len(finding.frames) == depth]
    said = [(finding, _verdict(parser, finding, deepest)) for finding in sorted(deepest, key=_rank)]
    finding, verdict = next((pair for pair in said if "did you mean" in pair[1].text), said[0])
    return place(parser, args, finding.key, verdict.name, verdict.value, verdict.first) + verdict.text


def unexpected_null(parser: ArgumentParser, args: Sequence[str], null: Null) -> str:
    """Place, what was found and what would be right of a null that is refused; arguments as for `explain`."""
    words = _words(null.wanted)
    where = place(parser, args, null.key, null.parameter, None)
    return f"{where}{f'{null.owner}.{null.parameter}: ' if null.owner else ''}expected {words}, found null"


def refused(message: str) -> str:
    """The class's own error, extracted from jsonargparse's outline of a union of types."""
    if "must be a mapping, not" in message:
        return f"a group of settings must be a mapping, {message.rpartition(', ')[2]}"
    if missing := not_installed(message):
        return missing
    entries = re.findall(r"^\s*- (?!Expected )(.+)$", message, flags=re.MULTILINE)
    return entries[0] if "Does not validate" in message and entries else message


# ---- reading the outline ----


def outline(message: str) -> Iterator[Finding]:
    """The entries of an indented outline, each with the keys and classes that it is nested in."""
    # where a callable is expected the class follows the mistake: put it in front, as it is everywhere else
    callable_ = (
        r"(?s)Type \S.*? expects a function or a callable class: (.*)\. Got value: Namespace\(class_path='(.+?)'.*"
    )
    message = re.sub(callable_, lambda m: f"Problem with given class_path '{m[2]}':\n{_indent(m[1])}", message)
    stack: list[tuple[int, tuple[str, str]]] = []
    values: dict[tuple[tuple[str, str], ...], str] = {}
    found: list[tuple[tuple[tuple[str, str], ...], str]] = []
    for line in filter(str.strip, message.splitlines()):
        text = re.sub(r"^\s*(- )?", "", line).strip()
        indent = len(line) - len(line.lstrip())
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if header := re.match(r'Parser key "(.+?)"(?: element \d+)?:\s*(.*)', text):
            stack.append((indent, ("key", header[1])))
            text = header[2]
        elif header := re.match(r"Problem with given class_path '(.+?)':", text):
            stack.append((indent, ("class", header[1])))
            continue
        text = re.sub(r"^Not of type \w+: invalid literal for int.*", "Expected a <class 'int'>", text)
        frames = tuple(frame for _, frame in stack)
        if text.startswith("Given value: "):
            values[frames] = text.removeprefix("Given value: ")
        elif text and frames and not NOISE.match(text):
            found.append((frames, text))
    for frames, text in found:
        text, got, given = text.partition(". Got value:")
        value = given.strip() if got else values.get(frames)
        wrapped = re.match(r"Type \S.* expects a function or a callable class: (.*)", text)
        if wrapped and (named := re.match(r"Namespace\(class_path='(.+?)'", value or "")):
            frames, text, value = (*frames, ("class", named[1])), wrapped[1], None
        yield Finding(frames, text, value)


def _indent(text: str) -> str:
    return textwrap.indent(text, " " * 8)


def _rank(finding: Finding) -> int:
    """Order among entries of equal depth: the one that says most comes first."""
    if RESTRICTED.match(finding.text):
        return -1
    if finding.text.startswith("Not a valid subclass"):
        return 3
    expected = EXPECTED.match(finding.text)
    if not expected:
        return 1  # an option or a class that does not exist, a missing argument
    return 0 if expected[1] in {"<class 'int'>", "<class 'float'>", "<class 'bool'>"} else 2


# ---- what is wrong ----


def _verdict(parser: ArgumentParser, finding: Finding, siblings: Sequence[Finding]) -> Verdict:
    classes = finding.classes
    where = f"{_short(classes[-1])}.{finding.inner_key}: " if finding.inner_key else ""
    if found := re.match(r"Option '(.+)' is not accepted", finding.text):
        known = sorted(keys_of(class_parser(classes[-1]))) if classes else []
        close = nearest(found[1], known)
        owner = _short(classes[-1]) if classes else finding.key
        return Verdict(f"{owner} has no option {found[1]!r}{hint(close, known)}", name=found[1])
    if (verdict := _class_verdict(parser, finding, where)) is not None:
        return verdict
    if found := re.match(r"the following arguments are required: (.+)", finding.text):
        return Verdict(f"{_short(classes[-1])} needs {found[1]}", value=classes[-1])
    if found := RESTRICTED.match(finding.text):
        return Verdict(f"{where}must lie in {found[1]} to {found[2]}, found {finding.value}", value=finding.value)
    if EXPECTED.match(finding.text):
        here = [sibling.text for sibling in siblings if sibling.frames == finding.frames]
        expected = [m[1] for text in here if (m := EXPECTED.match(text) or NOT_A_SUBCLASS.match(text))]
        text = f"{where}expected {_types(expected)}, found {_quoted(finding.value)}"
        close = nearest_literal(finding.value, expected) or nearest_logger(finding.key, finding.value)
        return Verdict(text + hint(close), finding.inner_key, finding.value)
    if finding.text.startswith("Not a valid subclass of "):
        base = finding.text.split()[-1]
        if (early := no_class(base, finding.value)) is not None:
            return Verdict(where + early[0], name=early[1], first=True)
        found_text = f"{where}expected a {base} (a name, or class_path and init_args), found {_quoted(finding.value)}"
        return Verdict(found_text, finding.inner_key)
    if re.match(r"argument of type '\w+' is not|'\w+' object has no attribute", finding.text):
        return Verdict(f"{where}expected a name, or class_path and init_args of it", finding.inner_key)
    ending = f", found {_quoted(finding.value)}" if finding.value else ""
    return Verdict(where + finding.text + ending, finding.inner_key)


def _class_verdict(parser: ArgumentParser, finding: Finding, where: str) -> Verdict | None:
    """What is wrong with a class itself, not with its options; None if nothing is."""
    classes, bases = finding.classes, parameter_classes(parser, finding.keys, finding.classes)
    given = f"{finding.value or ''} {'' if finding.inner_key or not classes else classes[-1]}"
    if (unfit := unfit_class(finding.text, given, bases)) is not None:
        return Verdict(f"{where}{unfit[0]!r} {unfit[1]}", value=unfit[0])
    found = NOT_A_CLASS.match(finding.text)
    if found is None:
        return None
    name = next((group for group in found.groups() if group), None) or classes[-1]
    if len(bases) == 1 and only_settings(bases[0]):
        text = f"{where}expected a mapping of the settings of {bases[0].__name__}, found {_quoted(name)}"
        return Verdict(text, value=name)
    classes_known = {cls.__name__: cls for base in bases for cls in concrete_subclasses(base)}
    reason = "is abstract" if found["abstract"] else f"is no known {' or '.join(b.__name__ for b in bases) or 'class'}"
    close = None if found["abstract"] else nearest(_short(name), classes_known)
    known = hint(close, sorted(classes_known))
    if close == _short(name) != name:  # a class that has moved, or a misspelled module
        known = hint(f"{classes_known[close].__module__}.{close} (in short, {close})")
    return Verdict(f"{where}{name!r} {reason}{known}", value=name)


def _unknown_argument(parser: ArgumentParser, argument: str) -> str:
    if not argument.startswith("-"):
        return f"found {argument!r} where an option belongs"
    close = nearest_key(argument.lstrip("-"), keys_of(parser))
    return f"unknown option {argument}{hint(close and f'--{close}')}"


def _types(expected: Sequence[str]) -> str:
    """Type annotations, as jsonargparse prints them, in words."""
    words = []
    for text in expected:
        name = re.sub(r"<class '(?:.*\.)?(.+?)'>", r"\1", text)
        choices = name.removeprefix("typing.Literal")
        words.append(f"one of {choices[1:-1]}" if choices != name else TYPE_NAMES.get(name, f"a {name}"))
    return " or ".join(dict.fromkeys(words))


def _words(annotation: Any) -> str:
    return _types([str(part) for part in typing.get_args(annotation) or (annotation,)])


def _quoted(value: str | None) -> str:
    if value is None or re.match(r"[\[{(]|-?[\d.]+$|None$|True$|False$", value):
        return str(value)
    return repr(value)


def _short(path: str) -> str:
    return path.rpartition(".")[2]
