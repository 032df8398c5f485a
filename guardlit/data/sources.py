"""Sources of prompts: what a name stands for, and the reader of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from guardlit.data.arrow_sources import HubDataset, ParquetFile
from guardlit.data.prompt_set import Chunk
from guardlit.data.text_files import READERS, TextFile
from guardlit.errors import GuardlitError, did_you_mean
from guardlit.types import Prompt

SUFFIXES = (*READERS, ".parquet")
"""Of prompt files."""

_HUB_ADDRESS = re.compile(r"https?://(?:www\.)?huggingface\.co/datasets/([\w.-]+/[\w.-]+)")
_HINTS = {
    ".gz": "; unpack it with gunzip",
    ".json": "; write one object a line, as .jsonl",
    ".ndjson": "; name it .jsonl",
    ".tsv": "; separate the columns by commas, as .csv",
    ".xlsx": "; save the table as .csv",
}


class Reader(Protocol):
    """What reads a source."""

    def chunks(self, at_once: int) -> Iterator[Chunk]:
        """The rows of a source, so many at a time."""

    def unpack(self, row: dict[str, Any]) -> Prompt:
        """The prompt of a row of a packed chunk."""


def is_source(text: str) -> bool:
    """Whether a text stands for prompts elsewhere: a file, a folder, a data set, an address; otherwise it is a prompt.

    A name that ends as a prompt file does is one, whether it is there or not: a misspelt file is no prompt.
    """
    if text.startswith(("hf:", "guardlit://")) or text.lower().endswith(SUFFIXES):
        return True
    if any(character.isspace() for character in text.strip()):
        return False
    return "/" in text or os.path.exists(text)


def reader_of(source: str) -> Reader:
    """The reader of a source, which `load_prompts` describes.

    Raises:
        GuardlitError: there is nothing of this name, or it is of another kind.
    """
    if source.startswith("hf:"):
        return HubDataset(source)
    if source.startswith("guardlit://"):
        from guardlit.assets import resolve

        return _of_file(Path(resolve(source)))
    if "://" in source:
        found = _HUB_ADDRESS.match(source)
        right = f"write hf:{found[1]}" if found else "download the file, or write hf:org/name for a data set of the hub"
        raise GuardlitError(f"{source}: prompts are not read from addresses; {right}")
    return _of_file(Path(os.path.expanduser(source)))


def _of_file(path: Path) -> Reader:
    if not _exists(path):
        raise GuardlitError(_missing(path))
    if path.is_dir():
        raise GuardlitError(f"{path} is a folder; name a prompt file in it, or write hf:{path} if it is a data set")
    if not path.is_file():  # to read a pipe waits for a writer, and a device may have no end
        raise GuardlitError(f"{path}: it is no regular file; prompts are read from a file on disk")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return ParquetFile(path)
    if suffix in READERS:
        return TextFile(path)
    known = f"known are {', '.join(SUFFIXES)} and hf:org/name{_HINTS.get(suffix, '')}"
    raise GuardlitError(f"{path}: unknown kind of prompt file {path.suffix!r}; {known}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise GuardlitError(f"{path}: cannot be read ({error.strerror}); name a prompt file") from error


def _missing(path: Path) -> str:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"no prompt file {path}: its folder {folder} does not exist (a data set is written hf:org/name)"
    names = sorted(p.name for p in folder.iterdir())
    return "; ".join(filter(None, [f"no prompt file {path.name} in {folder}", did_you_mean(path.name, names)]))
