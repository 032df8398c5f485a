"""Prompts from text files, line by line: .txt, .jsonl and .csv."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from guardlit.data.prompt_set import Chunk, Row
from guardlit.errors import GuardlitError
from guardlit.types import Prompt

COLUMN = "prompt"
"""The key or column of a prompt's text."""


class TextFile:
    """Reads a file of one prompt a line or record.

    Args:
        path: whose suffix is one of `READERS`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def chunks(self, at_once: int) -> Iterator[Chunk]:
        """The rows, read as they are asked for."""
        rows = READERS[self._path.suffix.lower()](self._path)
        while True:
            yield islice(rows, at_once), self._pack

    @staticmethod
    def _pack(prompts: Sequence[Prompt]) -> Any:
        import pyarrow as pa

        # metadata as JSON: Arrow would give all rows the same keys
        columns = [[p.text for p in prompts], [json.dumps(p.metadata) for p in prompts]]
        return pa.record_batch([pa.array(column, pa.large_string()) for column in columns], ["text", "metadata"])

    @staticmethod
    def unpack(row: dict[str, Any]) -> Prompt:
        """The prompt of a row of a packed batch."""
        return Prompt(row["text"], json.loads(row["metadata"]))


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Places and lines, without byte order mark and line ends.

    Not `splitlines`, which also splits at form feeds and Unicode separators inside a prompt.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1 and (kind := next((k for start, k in _KINDS.items() if raw.startswith(start)), None)):
                    raise GuardlitError(f"{path}: it is {kind}")
                line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                if line or number > 1:
                    yield f"{path}:{number}", _decoded(line, f"{path}:{number}")
    except OSError as error:
        raise GuardlitError(f"{path}: cannot be read ({error.strerror})") from error


_KINDS = {
    codecs.BOM_UTF32_LE: "UTF-32 text; save the file as UTF-8",  # before UTF-16, which begins with the same bytes
    codecs.BOM_UTF16_LE: "UTF-16 text; save the file as UTF-8",
    codecs.BOM_UTF16_BE: "UTF-16 text; save the file as UTF-8",
    codecs.BOM_UTF32_BE: "UTF-32 text; save the file as UTF-8",
    b"\x1f\x8b": "a gzip file; unpack it with gunzip",
    b"PK\x03\x04": "a zip file; unpack it",
    b"PAR1\x15": "a parquet file; name it .parquet",
}
"""What a file is that begins with some bytes."""


def _decoded(line: bytes, place: str) -> str:
    if line.endswith(b"\n"):
        line = line[:-1].removesuffix(b"\r")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise GuardlitError(f"{place}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from error


def _txt_rows(path: Path) -> Iterator[Row]:
    for place, line in _lines(path):
        if "\r" in line.rstrip("\r"):
            raise GuardlitError(f"{place}: a carriage return within the line; end lines with LF or CR LF")
        yield place, line, {}


def jsonl_rows(path: Path, column: str = COLUMN) -> Iterator[Row]:
    """Rows of a file of one object a line, each with this key.

    Raises:
        GuardlitError: a line that is anything else; names it.
    """
    for place, line in _lines(path):
        if not line.strip():
            raise GuardlitError(f"{place}: the line is blank; remove it or write an object with the key {column!r}")
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            reason = f"{error.msg} at column {error.colno}"
            raise GuardlitError(f"{place}: not JSON ({reason}); each line is one object") from error
        except RecursionError as error:
            raise GuardlitError(
                f"{place}: JSON that is nested thousands of levels deep; write a flat object"
            ) from error
        except ValueError as error:  # a key twice, a number of thousands of digits
            raise GuardlitError(f"{place}: JSON that cannot be read: {first_line(error)}") from error
        if not isinstance(row, dict):
            raise GuardlitError(
                f"{place}: JSON of type {type(row).__name__}; each line is one object with the key {column!r}"
            )
        yield split(place, row, column, f"call the text's key {column!r}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of equal keys, the library would keep the last in silence."""
    found = dict(pairs)
    if len(found) != len(pairs):
        once_each([key for key, _ in pairs])
    return found


def _csv_rows(path: Path) -> Iterator[Row]:
    records = _records(path)
    place, header = next(records, (str(path), None))
    if header is None:
        return
    advice = f"the first line must name the columns, one of them {COLUMN!r}"
    if not any(header):
        raise GuardlitError(f"{place}: the line is blank; {advice}")
    try:
        once_each(header)
    except ValueError as error:
        raise GuardlitError(f"{place}: {error}") from error
    separator = next((c for c in ";\t|" if len(header) == 1 and c in header[0]), None)
    split(
        place,
        dict.fromkeys(header),
        COLUMN,
        advice if separator is None else f"separate columns by , not {separator!r}",
    )
    for place, cells in records:
        if len(cells) <= 1 and not any(map(str.strip, cells)):
            raise GuardlitError(f"{place}: the line is blank; remove it or write a prompt")
        if len(cells) != len(header):
            advice = "put a text with commas in quotes" if len(cells) > len(header) else "a comma is missing"
            fields = "1 field" if len(cells) == 1 else f"{len(cells)} fields"
            raise GuardlitError(f"{place}: {fields} where the header has {len(header)}; {advice}")
        yield split(place, dict(zip(header, cells, strict=True)), COLUMN)


def _records(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The place where a record begins, and its fields."""
    # within a line, the csv module ends rows at a lone CR
    parts = (part for _, line in _lines(path) for part in io.StringIO(f"{line}\n", newline=""))
    table = csv.reader(parts, strict=True)
    while True:
        place = f"{path}:{table.line_num + 1}"
        try:
            cells = next(table, None)
        except csv.Error as error:
            reason = "its quotes are never closed" if "unexpected end" in str(error) else str(error)
            raise GuardlitError(f"{place}: not CSV ({reason}); write a quote within quotes twice") from error
        if cells is None:
            return
        yield place, cells


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {".txt": _txt_rows, ".jsonl": jsonl_rows, ".csv": _csv_rows}
"""Rows of a file, by its suffix."""


def split(place: str, row: Mapping[str, Any], column: str, advice: str = "") -> Row:
    """A row as text and metadata; raises `GuardlitError`, with the advice, where the column is missing."""
    if column not in row:
        keys = ", ".join(repr(key) for key in list(row)[:10]) or "none"
        raise GuardlitError(f"{place}: no {column!r} here; there is {keys}" + (f"; {advice}" if advice else ""))
    return place, row[column], {key: value for key, value in row.items() if key != column}


def once_each(names: Sequence[str]) -> None:
    """Raise `ValueError` for a name that is there twice."""
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"{repeated!r} is there twice; keep one")


def first_line(error: Exception) -> str:
    """Of an error's message; its class where there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
