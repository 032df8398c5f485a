"""Prompts from files and data sets; whatever is wrong with them is one line that names the place."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from guardlit.data.arrow_sources import HubDataset, ParquetFile
from guardlit.data.prompt_set import AT_ONCE, Chunk, PromptSet, Row
from guardlit.data.text_files import READERS, TextFile
from guardlit.errors import GuardlitError, did_you_mean
from guardlit.types import Prompt

MAX_CHARACTERS = 2000
"""The longest prompt that is taken for one. (Text encoders truncate much earlier, without harm.)"""

_NOT_TEXT = re.compile(
    "[\0\ud800-\udfff]"
)  # UTF-16 read as UTF-8, or half of a surrogate pair: no tokenizer takes these


class _Reader(Protocol):
    def chunks(self, at_once: int) -> Iterator[Chunk]:
        """The rows of a source, so many at a time."""

    def unpack(self, row: dict[str, Any]) -> Prompt:
        """The prompt of a row of a packed chunk."""


def load_prompts(source: str, *, limit: int | None = None, check: Callable[[Prompt], None] | None = None) -> PromptSet:
    """Read and check prompts in the order of their file; duplicates are kept, white space around a prompt is not.

    Every row is checked in one pass that keeps `AT_ONCE` rows in memory; the prompts are on disk afterwards, served by
    index.

    Args:
        source: one of
            `prompts.txt`: one prompt a line;
            `prompts.jsonl`: one object a line with the key "prompt", its other keys are metadata (GenEval's files);
            `prompts.csv`, `prompts.parquet`: a column "prompt", the other columns are metadata;
            `hf:org/name?config=c&split=train&column=caption`: a Hugging Face data set, streamed. All options may be
            left out; they stand for the only config, `split=train` and `column=prompt`. Columns that hold binary data
            (images) are not read. `hf:path/to/folder` reads a local data set folder the same way;
            `guardlit://prompts/...`: a file that comes with guardlit.
        limit: stop after that many prompts; what follows is not checked.
        check: called with every prompt; raises `GuardlitError` for one that the run cannot use.

    Raises:
        GuardlitError: nothing there, not readable, or a prompt that is blank, over-long or not text.
    """
    if limit is not None and limit < 1:
        raise GuardlitError(f"limit of {source} is {limit}; it must be at least 1, or null for all prompts")
    reader: _Reader = HubDataset(source) if source.startswith("hf:") else _file(source)
    try:
        prompts = PromptSet(_checked(reader, limit, check), reader.unpack)
    except RecursionError as error:
        raise GuardlitError(f"{source}: metadata nested hundreds of levels deep; write flat objects") from error
    if not prompts:
        raise GuardlitError(f"{source}: it is empty; at least one prompt is needed")
    return prompts


def _checked(
    reader: _Reader, limit: int | None, check: Callable[[Prompt], None] | None
) -> Iterator[tuple[list[Prompt], Any]]:
    """Checked prompts with the batch that holds them, until there are `limit` or no more."""
    left = limit
    for rows, pack in reader.chunks(min(limit or AT_ONCE, AT_ONCE)):
        prompts = [_usable(row, check) for row in islice(rows, left)]
        if prompts:
            yield prompts, pack(prompts)
        left = None if left is None else left - len(prompts)
        if not prompts or left == 0:
            return


def _usable(row: Row, check: Callable[[Prompt], None] | None) -> Prompt:
    prompt = _check(row)
    if check is not None:
        try:
            check(prompt)
        except GuardlitError as error:
            raise GuardlitError(f"{row[0]}: {error}") from error
    return prompt


def checked_texts(place: str, texts: Sequence[str]) -> list[str]:
    """Prompts that were given as they are, without the white space around them; raises `GuardlitError` for odd ones."""
    return [_check((f"{place}: text {i}", text, {})).text for i, text in enumerate(texts, start=1)]


def _check(row: Row) -> Prompt:
    place, text, metadata = row
    if not isinstance(text, str):
        raise GuardlitError(f"{place}: the prompt is of type {type(text).__name__}, not a text")
    text = text.strip()
    if not text:
        raise GuardlitError(f"{place}: the prompt is blank; remove the line or write a prompt")
    if len(text) > MAX_CHARACTERS:
        raise GuardlitError(f"{place}: the prompt has {len(text)} characters, more than the {MAX_CHARACTERS} allowed")
    if _NOT_TEXT.search(text):
        raise GuardlitError(f"{place}: the prompt holds a NUL or half a surrogate pair; save the file as UTF-8 text")
    return Prompt(text, metadata)


def _file(source: str) -> _Reader:
    if source.startswith("guardlit://"):
        from guardlit.assets import resolve

        path = Path(resolve(source))
    else:
        path = Path(os.path.expanduser(source))
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
    known = ", ".join([*READERS, ".parquet"])
    raise GuardlitError(f"{path}: unknown kind of prompt file {path.suffix!r}; known are {known} and hf:org/name")


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
