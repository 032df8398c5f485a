"""Classes as their source files describe them: parameters, defaults and docs, without importing a module of theirs.

Importing torch and Lightning takes seconds; reading the files takes a few hundredths, and cannot be out of date.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class UnknownSourceError(Exception):
    """A class or module whose source is not found, or not of a form that is read here."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a class or method.

    Attributes:
        name: of the parameter.
        annotation: as the source writes it.
        default: as the source writes it; None if it is required.
        text: its entry in the docstring, in one line.
        module: that the annotation's names belong to.
    """

    name: str
    annotation: str
    default: str | None
    text: str
    module: str


@dataclass(frozen=True)
class Source:
    """A class in its source file."""

    module: str
    node: ast.ClassDef

    @property
    def path(self) -> str:
        """The import path of the class."""
        return f"{self.module}.{self.node.name}"

    def bases(self) -> Iterator[Source]:
        """Its base classes, as far as they have a source."""
        for base in self.node.bases:
            try:
                yield resolve(self.module, ast.unparse(base))
            except UnknownSourceError:
                continue

    def ancestors(self) -> list[Source]:
        """The class, its bases, and theirs; one that several share comes after all of them."""
        found = [self, *(ancestor for base in self.bases() for ancestor in base.ancestors())]
        return [source for k, source in enumerate(found) if source.path not in {s.path for s in found[k + 1 :]}]

    @property
    def is_dataclass(self) -> bool:
        """Whether it is decorated as one."""
        return any("dataclass" in ast.unparse(decorator) for decorator in self.node.decorator_list)

    @property
    def is_abstract(self) -> bool:
        """Whether a method without a body is left."""
        line = [node for source in self.ancestors() for node in source.node.body if isinstance(node, FUNCTIONS)]
        first: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        for node in line:
            first.setdefault(node.name, node)
        return any("abstractmethod" in ast.unparse(d) for node in first.values() for d in node.decorator_list)

    def parameters(self) -> list[Parameter]:
        """What the class takes; `**kwargs` are the parameters of its base."""
        if self.is_dataclass:
            line = [source for source in self.ancestors()[::-1] if source.is_dataclass]
            texts = {name: text for source in line for name, text in _entries(source._doc).items()}
            return list({p.name: p for source in line for p in source._fields(texts)}.values())
        return self.method("__init__")

    def method(self, name: str) -> list[Parameter]:
        """The parameters of a method after self, by its first definition in the class or its bases."""
        found = next((n for n in self.node.body if isinstance(n, FUNCTIONS) and n.name == name), None)
        if found is None:
            base = next(self.bases(), None)
            if base is None:
                raise UnknownSourceError(f"{self.path}.{name}")
            return base.method(name)
        texts = _entries(ast.get_docstring(found) or "") | (_entries(self._doc) if name == "__init__" else {})
        own = [self._parameter(arg, default, texts) for arg, default in _arguments(found.args)]
        if found.args.kwarg is None:
            return own
        named = {parameter.name for parameter in own}
        return own + [p for p in next(self.bases()).method(name) if p.name not in named]

    @property
    def _doc(self) -> str:
        return ast.get_docstring(self.node) or ""

    def _fields(self, texts: dict[str, str]) -> Iterator[Parameter]:
        for node in self.node.body:
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            # a class variable is no parameter of a dataclass
            if not ast.unparse(node.annotation).removeprefix("typing.").startswith("ClassVar"):
                yield self._parameter(ast.arg(node.target.id, node.annotation), node.value, texts)

    def _parameter(self, arg: ast.arg, default: ast.expr | None, texts: dict[str, str]) -> Parameter:
        annotation = ast.unparse(arg.annotation) if arg.annotation else "Any"
        written = None if default is None else ast.unparse(default)
        return Parameter(arg.arg, annotation, written, texts.get(arg.arg, ""), self.module)


@cache
def resolve(module: str, name: str) -> Source:
    """The class that a name stands for in a module: its own, or one it imports; `pl.Trainer` too.

    Raises:
        UnknownSourceError: there is no such class, or no source of it.
    """
    first, _, rest = name.partition(".")
    found = _names(module).get(first)
    if isinstance(found, ast.ClassDef) and not rest:
        return Source(module, found)
    if isinstance(found, tuple):
        home, original = found
        if rest:
            return resolve(f"{home}.{original}" if original else home, rest)
        if original:
            return resolve(home, original)
    raise UnknownSourceError(f"{module}.{name}")


@cache
def _names(module: str) -> dict[str, ast.ClassDef | tuple[str, str]]:
    """Classes of a module, and what it imports: the module, and the name there; an empty one for the module itself."""
    names: dict[str, ast.ClassDef | tuple[str, str]] = {}
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: (_home(module, node), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: (alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            names[node.name] = node
    return names


def _home(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return str(node.module)
    package = module if _file(module).name == "__init__.py" else module.rpartition(".")[0]
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])


@cache
def _tree(module: str) -> ast.Module:
    try:
        return ast.parse(_file(module).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UnknownSourceError(module) from error


@cache
def _file(module: str) -> Path:
    top, *parts = module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        raise UnknownSourceError(module)
    folder = Path(spec.origin).parent.joinpath(*parts)
    for file in (folder / "__init__.py", folder.with_suffix(".py")):
        if file.is_file():
            return file
    raise UnknownSourceError(module)


def _arguments(args: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Named arguments after the first, each with its default."""
    positional = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(positional) - len(args.defaults)) + list(args.defaults)
    yield from list(zip(positional, defaults, strict=True))[1:]
    yield from zip(args.kwonlyargs, args.kw_defaults, strict=True)


def _entries(doc: str) -> dict[str, str]:
    """Names and texts of a docstring's `Args:` and `Attributes:`."""
    found = {}
    for section in re.findall(r"^(?:Args|Attributes):[ ]*\n((?:[ ]+.*\n|\n)+)", doc + "\n\n", flags=re.MULTILINE):
        for entry in re.split(r"\n(?=\S)", textwrap.dedent(section)):
            if match := re.match(r"\**(\w+)(?: \([^)]*\))?: *(.*)", entry, flags=re.DOTALL):
                found[match[1]] = " ".join(match[2].split())
    return found


def mapping(module: str, name: str) -> dict[str, str]:
    """Keys and values of a dictionary at the top of a module, the values as the source writes them."""
    for node in _tree(module).body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        value = getattr(node, "value", None)
        if any(isinstance(t, ast.Name) and t.id == name for t in targets) and isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            return {str(key.value): ast.unparse(item) for key, item in pairs if isinstance(key, ast.Constant)}
    raise UnknownSourceError(f"{module}.{name}")
