"""Prompts from files and data sets; whatever is wrong with them is one line that names the place."""

from __future__ import annotations

import codecs
import csv
import difflib
import hashlib
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from guardlit.errors import GuardlitError
from guardlit.types import Prompt

Row = tuple[str, object, Mapping[str, Any]]
"""Where a prompt stands, its text as read (not yet checked), and its metadata."""

_COLUMN = "prompt"
_NOT_TEXT = re.compile(
    "[\0\ud800-\udfff]"
)  # UTF-16 read as UTF-8, or half of a surrogate pair: no tokenizer takes these


def load_prompts(source: str, *, limit: int | None = None, max_characters: int = 2000) -> list[Prompt]:
    """Read prompts in the order of their file; duplicates are kept, white space around a prompt is not.

    Args:
        source: one of
            `prompts.txt`: one prompt a line;
            `prompts.jsonl`: one object a line with the key "prompt", its other keys are metadata (GenEval's files);
            `prompts.csv`, `prompts.parquet`: a column "prompt", the other columns are metadata;
            `hf:org/name?config=c&split=train&column=caption`: a Hugging Face data set, streamed. All options may be
            left out; they stand for the only config, `split=train` and `column=prompt`. Columns that hold binary data
            (images) are not read. `hf:path/to/folder` reads a local data set folder the same way;
            `guardlit://prompts/...`: a file that comes with guardlit.
        limit: stop after that many prompts; what follows is not read, nor checked.
        max_characters: the longest prompt that is taken for one. (Text encoders truncate much earlier, without harm.)

    Raises:
        GuardlitError: nothing there, not readable, or a prompt that is blank, over-long or not text.
    """
    if limit is not None and limit < 1:
        raise GuardlitError(f"limit of {source} is {limit}; it must be at least 1, or null for all prompts")
    rows = _dataset_rows(source) if source.startswith("hf:") else _file_rows(source)
    prompts = [_check(row, max_characters) for row in islice(rows, limit)]
    if not prompts:
        raise GuardlitError(f"{source}: it is empty; at least one prompt is needed")
    return prompts


def digest(prompts: Sequence[Prompt]) -> str:
    """Number and SHA-256 of prompts and their metadata, for a checkpoint's fingerprint."""
    content = json.dumps([(p.text, p.metadata) for p in prompts], sort_keys=True, default=str)
    return f"{len(prompts)} prompts of SHA-256 {hashlib.sha256(content.encode()).hexdigest()[:12]}"


def checked_texts(place: str, texts: Sequence[str], max_characters: int = 2000) -> list[str]:
    """Prompts that were given as they are, without the white space around them; raises `GuardlitError` for odd ones."""
    return [_check((f"{place}: text {i}", text, {}), max_characters).text for i, text in enumerate(texts, start=1)]


def _check(row: Row, max_characters: int) -> Prompt:
    place, text, metadata = row
    if not isinstance(text, str):
        raise GuardlitError(f"{place}: the prompt is of type {type(text).__name__}, not a text")
    text = text.strip()
    if not text:
        raise GuardlitError(f"{place}: the prompt is blank; remove the line or write a prompt")
    if len(text) > max_characters:
        raise GuardlitError(f"{place}: the prompt has {len(text)} characters, more than the {max_characters} allowed")
    if _NOT_TEXT.search(text):
        raise GuardlitError(f"{place}: the prompt holds a NUL or half a surrogate pair; save the file as UTF-8 text")
    return Prompt(text, metadata)


def _file_rows(source: str) -> Iterator[Row]:
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
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise GuardlitError(f"{path}: unknown kind of prompt file {path.suffix!r}; known are {known} and hf:org/name")
    return reader(path)


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
    similar = difflib.get_close_matches(path.name, names, n=1)
    return f"no prompt file {path.name} in {folder}" + (f"; did you mean {similar[0]}?" if similar else "")


def _read_text(path: Path) -> str:
    """The whole file, without byte order mark, its lines ended as on Unix."""
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise GuardlitError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise GuardlitError(f"{path}:{line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from error


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Places and lines. Not `splitlines`, which also splits at form feeds and Unicode separators inside a prompt."""
    text = _read_text(path)
    if text:
        for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
            yield f"{path}:{number}", line


def _txt_rows(path: Path) -> Iterator[Row]:
    for place, line in _lines(path):
        if "\r" in line.rstrip("\r"):
            raise GuardlitError(f"{place}: a carriage return within the line; end lines with LF or CR LF")
        yield place, line, {}


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for place, line in _lines(path):
        if not line.strip():
            raise GuardlitError(f"{place}: the line is blank; remove it or write an object with the key {_COLUMN!r}")
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
            raise GuardlitError(f"{place}: JSON that cannot be read: {_first_line(error)}") from error
        if not isinstance(row, dict):
            raise GuardlitError(f"{place}: JSON of type {type(row).__name__}, not an object with the key {_COLUMN!r}")
        yield _split(place, row, _COLUMN)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of equal keys, the library would keep the last in silence."""
    _once_each(key for key, _ in pairs)
    return dict(pairs)


def _once_each(names: Iterable[str]) -> None:
    """Raise `ValueError` for a name that is there twice."""
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated is not None:
        raise ValueError(f"{repeated!r} is there twice; keep one")


def _csv_rows(path: Path) -> Iterator[Row]:
    table = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        header = next(table, None)
        _once_each(header or ())
        for cells in table:
            place = f"{path}:{table.line_num}"
            if header is None or len(cells) != len(header):
                raise GuardlitError(
                    f"{place}: {len(cells)} fields where the header has {len(header or ())}; quote a text with commas"
                )
            yield _split(place, dict(zip(header, cells, strict=True)), _COLUMN)
    except (csv.Error, ValueError) as error:
        raise GuardlitError(f"{path}:{table.line_num}: not CSV with a header ({error})") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        _once_each(file.schema_arrow.names)
        batches = file.iter_batches(columns=_light_columns(file.schema_arrow))
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from _numbered(f"{path}", rows, _COLUMN)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise GuardlitError(f"{path}: not a readable parquet file ({_first_line(error)})") from error


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".txt": _txt_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


@dataclass(frozen=True)
class _Dataset:
    """A parsed `hf:` source."""

    name: str
    config: str | None = None
    split: str = "train"
    column: str = _COLUMN

    @classmethod
    def parse(cls, source: str) -> _Dataset:
        name, _, query = source.removeprefix("hf:").partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        unknown = sorted(options.keys() - {"config", "split", "column"})
        if unknown or not name or (query and not options):
            raise GuardlitError(f"{source}: a data set is written hf:org/name?config=c&split=train&column=prompt")
        return cls(os.path.expanduser(name), **options)

    def rows(self) -> Iterator[dict[str, Any]]:
        import datasets

        datasets.logging.set_verbosity(logging.CRITICAL)  # what is wrong is said once, by us
        folder = Path(self.name)
        if (folder / "dataset_dict.json").is_file():  # written by DatasetDict.save_to_disk
            data = datasets.load_from_disk(self.name)[self.split]
        elif (folder / "state.json").is_file():  # written by Dataset.save_to_disk
            data = datasets.load_from_disk(self.name)
        else:
            data = datasets.load_dataset(self.name, self.config, split=self.split, streaming=True)
        if data.features is not None:
            data = data.select_columns(_light_columns(data.features.arrow_schema))
        return iter(data)


def _dataset_rows(source: str) -> Iterator[Row]:
    wanted = _Dataset.parse(source)
    if wanted.name.startswith(("/", ".")) and not Path(wanted.name).is_dir():
        raise GuardlitError(f"{source}: there is no folder {Path(wanted.name).absolute()}")
    try:
        yield from _numbered(source, wanted.rows(), wanted.column)
    except GuardlitError:
        raise
    except Exception as error:  # the library raises its own, huggingface_hub's, fsspec's and pyarrow's errors
        hint = "" if Path(wanted.name).is_dir() else "; is the name right, and is the machine online?"
        raise GuardlitError(f"{source}: the data set cannot be read ({_first_line(error)}){hint}") from error


def _numbered(source: str, rows: Iterator[dict[str, Any]], column: str) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        yield _split(f"{source}, row {number}", row, column)


def _split(place: str, row: Mapping[str, Any], column: str) -> Row:
    if column not in row:
        keys = ", ".join(repr(key) for key in list(row)[:10]) or "none"
        raise GuardlitError(f"{place}: no {column!r} here; there is {keys}")
    return place, row[column], {key: value for key, value in row.items() if key != column}


def _light_columns(schema: Any) -> list[str]:
    """Columns of an Arrow schema without binary data: what can be metadata of a prompt."""
    return [field.name for field in schema if "binary" not in str(field.type)]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
