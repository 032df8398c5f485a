"""What a row of the tables of malformed inputs is, and where it is tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FIT = ("fit", "--config", "run.yaml")
RUN = ("--config", "run.yaml")


@dataclass(frozen=True)
class World:
    """The folder that a row is tried in, which is the current one: it holds run.yaml, prompts.txt and model/.

    Attributes:
        folder: empty but for those.
        marker: what code in an input would make, were it executed.
    """

    folder: Path
    marker: Path

    def write(self, name: str, content: str | bytes) -> str:
        """Make a file, and the folders above it; its name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        what: its name in the test's id.
        spoil: makes it; the command line.
        place: where the line must say that the mistake is.
        found: what it must say that was found there.
        right: what it must say that would be right.
        environment: variables that are set.
        model: whether the row changes the model folder, of which it then has its own copy.
    """

    what: str
    spoil: Callable[[World], Sequence[str]]
    place: str
    found: str
    right: str
    environment: Mapping[str, str] = field(default_factory=dict)
    model: bool = False


def line(what: str, command: Sequence[str], place: str, found: str, right: str, **environment: str) -> Case:
    """A row whose input is a command line."""
    return Case(what, lambda _: command, place, found, right, environment)


def file(
    what: str, name: str, content: str | bytes, command: Sequence[str], place: str, found: str, right: str
) -> Case:
    """A row whose input is a file."""
    return Case(what, lambda world: [*command, world.write(name, content)], place, found, right)
