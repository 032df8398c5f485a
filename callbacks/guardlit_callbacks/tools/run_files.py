"""Reads the files of a run's folder: tables, arrays and settings; errors name the file in one line."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guardlit_callbacks.tools.statistics import STEP_KEY, Array

Columns = dict[str, Array]
"""Columns of a table by name, float64 (n,) each."""


class ReportError(ValueError):
    """An error the user can fix: what was found where, and what would be right, in one line."""


def last_file(folders: Sequence[Path], name: str) -> Path | None:
    """The file of that name in the last folder that has it."""
    return next((f / name for f in reversed(folders) if (f / name).is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping."""
    found = _checked(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(found, dict):
        raise ReportError(f"{path} holds a {type(found).__name__}; it must be a mapping")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file; empty if it holds no mapping."""
    import yaml

    try:
        found = _checked(path, lambda: yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ReportError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    return found if isinstance(found, dict) else {}


def read_arrays(path: Path, names: Sequence[str] | None = None) -> dict[str, Array]:
    """The arrays of an NPZ file, or those of some names that it has."""

    def read() -> dict[str, Array]:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in (file.files if names is None else names) if name in file}

    arrays: dict[str, Array] = _checked(path, read)
    return arrays


def read_table(path: Path) -> Columns:
    """A CSV file's columns, NaN for empty cells, without a last row that is still being written; {} without a file."""
    if not path.is_file():
        return {}
    header, *rows = _checked(path, lambda: list(csv.reader(path.read_text(encoding="utf-8").splitlines()))) or [[]]
    if header and "step" not in header:
        raise ReportError(f"{path} has no column 'step'; it must be as Lightning's CSVLogger writes it")
    lines = [(line, row) for line, row in enumerate(rows, start=2) if len(row) == len(header)]
    return {
        key: np.array([_number(path, line, key, row[i]) for line, row in lines])
        for i, key in enumerate(header)
        if lines and not STEP_KEY.search(key)
    }


def join_tables(tables: Sequence[Columns]) -> Columns:
    """One table of a run's folders; a later folder replaces the rows of earlier ones from its first step on."""
    joined: Columns = {}
    for table in filter(None, tables):
        if not joined:
            joined = table
            continue
        keep, names = joined["step"] < table["step"].min(), {**joined, **table}
        joined = {name: np.concatenate([column(joined, name)[keep], column(table, name)]) for name in names}
    return joined


def column(table: Columns, name: str) -> Array:
    """A column of a table; NaN if it has none."""
    return table.get(name, np.full_like(table["step"], np.nan))


def _checked(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ReportError(f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        raise ReportError(f"{path}:{line}: column {name!r} holds {cell!r}, which is no number") from None
