"""Prompts from Arrow tables: parquet files and Hugging Face data sets, read as streams."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from guardlit.data.prompt_set import Chunk
from guardlit.data.text_files import COLUMN, first_line, once_each, split
from guardlit.data.texts import cleaned
from guardlit.errors import GuardlitError, hub_refusal
from guardlit.types import Prompt

Decode = Callable[[dict[str, Any]], dict[str, Any]]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
READ_AHEAD = 2**20
"""Bytes of a parquet file that are read at once; without it, a column's whole row group is."""


class ParquetFile:
    """Reads a parquet file with a column "prompt".

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def chunks(self, at_once: int) -> Iterator[Chunk]:
        """The rows, some of a row group at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self._path, buffer_size=READ_AHEAD, pre_buffer=False) as file:
                once_each(file.schema_arrow.names)
                columns = _light_columns(file.schema_arrow)
                batches = file.iter_batches(at_once, columns=columns, use_threads=False)
                yield from _numbered(str(self._path), batches, COLUMN, f"call the column of the texts {COLUMN!r}")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise GuardlitError(f"{self._path}: not a readable parquet file ({first_line(error)})") from error

    @staticmethod
    def unpack(row: dict[str, Any]) -> Prompt:
        """The prompt of a row of a batch."""
        return _prompt(row, COLUMN)


class HubDataset:
    """Reads a Hugging Face data set: a hub id, a folder of data files, or what `save_to_disk` wrote.

    Args:
        source: `hf:org/name?config=c&split=train&column=caption`.

    Raises:
        GuardlitError: a source that is not written so, or a folder that does not exist.
    """

    def __init__(self, source: str) -> None:
        self._source, self._options = source, _Options.parse(source)
        self._decode: Decode = dict

    def chunks(self, at_once: int) -> Iterator[Chunk]:
        """The rows, which the library streams: it writes nothing to its own cache."""
        try:
            data = self._open()
            if data.features is not None:
                data = data.select_columns(_light_columns(data.features.arrow_schema))
                self._decode = data.features.decode_example
            tables = data.with_format("arrow").iter(batch_size=at_once)
            light = (table.select(_light_columns(table.schema)) for table in tables)
            advice = "choose one with ?column=NAME"
            yield from _numbered(self._source, light, self._options.column, advice, self._decode)
        except GuardlitError:
            raise
        except Exception as error:  # the library raises its own, huggingface_hub's, fsspec's and pyarrow's errors
            if refusal := hub_refusal(error, self._options.name, "datasets/"):
                raise GuardlitError(f"{self._source}: {refusal}") from error
            hint = "" if Path(self._options.name).is_dir() else "; is the name right, and is the machine online?"
            raise GuardlitError(f"{self._source}: the data set cannot be read ({first_line(error)}){hint}") from error

    def unpack(self, row: dict[str, Any]) -> Prompt:
        """The prompt of a row of a batch."""
        return _prompt(self._decode(row), self._options.column)

    def _open(self) -> Any:
        import datasets

        datasets.logging.set_verbosity(logging.CRITICAL)  # what is wrong is said once, by us
        options, folder = self._options, Path(self._options.name)
        split = options.split or "train"
        if (folder / "dataset_dict.json").is_file():  # written by DatasetDict.save_to_disk
            return self._saved(datasets.load_from_disk(options.name), split)
        if (folder / "state.json").is_file():  # written by Dataset.save_to_disk
            data = datasets.load_from_disk(options.name)
            return self._saved({str(data.split or "train") if options.split else split: data}, split)
        try:
            return datasets.load_dataset(options.name, options.config, split=split, streaming=True)
        except ValueError as error:
            if there := re.search(r"Bad split: .*Available splits: \[(.*)\]", str(error)):
                raise self._no_split(split, there[1]) from error
            raise

    def _saved(self, splits: Mapping[str, Any], split: str) -> Any:
        """A split of what `save_to_disk` wrote."""
        if self._options.config is not None:
            raise GuardlitError(f"{self._source}: a data set saved to disk has no configurations; leave out config")
        if split not in splits:
            raise self._no_split(split, ", ".join(map(repr, splits)))
        return splits[split]

    def _no_split(self, split: str, there: str) -> GuardlitError:
        right = "data.train_limit takes the first prompts" if "[" in split else "choose one with ?split=NAME"
        return GuardlitError(f"{self._source}: no split {split!r} here; there is {there}; {right}")


@dataclass(frozen=True)
class _Options:
    """A parsed `hf:` source."""

    name: str
    config: str | None = None
    split: str | None = None
    column: str = COLUMN

    @classmethod
    def parse(cls, source: str) -> _Options:
        name, _, query = source.removeprefix("hf:").partition("?")
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)  # split=train+test
        options, name = dict(pairs), os.path.expanduser(name)
        right = "a data set is written hf:org/name?config=c&split=train&column=prompt"
        if options.keys() - {"config", "split", "column"} or len(options) < len(pairs) or not all(options.values()):
            raise GuardlitError(f"{source}: {right}, each option once")
        if (query and not options) or not name or name.startswith("//"):
            raise GuardlitError(f"{source}: {right}")
        if Path(name).is_file():
            raise GuardlitError(f"{source}: {name} is a file; write it without hf:")
        if not Path(name).is_dir():
            if name.startswith(("/", ".")):
                raise GuardlitError(f"{source}: there is no folder {Path(name).absolute()}")
            if not _HUB_ID.fullmatch(name):
                raise GuardlitError(f"{source}: there is no folder {name} here, and it is no hub id; {right}")
        return cls(name, **options)


def _numbered(source: str, batches: Iterable[Any], column: str, advice: str, decode: Decode = dict) -> Iterator[Chunk]:
    done = 0
    for batch in batches:
        # all at once: what cannot be decoded is the source's error, not the caller's
        rows = [decode(row) for row in batch.to_pylist()]
        if rows:
            places = (f"{source}, row {number}" for number in range(done + 1, done + len(rows) + 1))
            pairs = zip(places, rows, strict=True)
            yield (split(place, row, column, advice) for place, row in pairs), _first_of(batch)
        done += len(rows)


def _first_of(batch: Any) -> Callable[[Sequence[Prompt]], Any]:
    return lambda prompts: batch.slice(0, len(prompts))


def _prompt(row: dict[str, Any], column: str) -> Prompt:
    return Prompt(cleaned(row.pop(column)), row)


def _light_columns(schema: Any) -> list[str]:
    """Columns of an Arrow schema without binary data: what can be metadata of a prompt."""
    return [field.name for field in schema if "binary" not in str(field.type)]
