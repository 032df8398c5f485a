"""What a run left in its folder, read without torch or Lightning."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guardlit_callbacks.tools.statistics import STEP_KEY, Array

MAX_ROUNDS = 200
"""More rounds than this are sampled evenly: thousands would take minutes and move no number that is printed."""

MIN_EPOCHS = 10
"""With fewer epochs a curve over epochs would say too little, so each logged value is a point of its own."""


class ReportError(ValueError):
    """A mistake the user can mend: what was found where, and what would be right, in one line."""


class Series(NamedTuple):
    """Values over training, never NaN: optimizer steps (n,), rising, and the value at each (n,).

    Where an epoch is averaged the step is that of its middle.
    """

    step: Array
    value: Array


@dataclass(frozen=True)
class Rounds:
    """The arrays of a run's rounds, in order.

    Attributes:
        arrays: of each round that was read, by name.
        found: rounds there are; more than were read where there are many.
    """

    arrays: Sequence[Mapping[str, Array]] = ()
    found: int = 0


@dataclass(frozen=True)
class Run:
    """One training run; one that was resumed elsewhere has several folders.

    Attributes:
        folders: in the order of time.
        scalars: what was logged, by key, but for keys of single denoising steps; averaged over epochs (rounds) where
            there are several values an epoch.
        gold: columns of `gold.csv`, by name, `step` among them; (n,) each, empty where there is none.
        ratio: arrays of `RatioDistribution`.
        gradient: arrays of `GradientNorm`.
        film_strip: the picture that `SampleGrid` left at the end; None where there is none.
        verdict: what `OverOptimizationStop` said last; empty where it never acted.
        config: the last folder's `config.yaml`.
        config_text: the same as written.
        facts: the last folder's `run.json`.
        missing: files that no folder has.
    """

    folders: tuple[Path, ...]
    scalars: Mapping[str, Series] = field(default_factory=dict)
    gold: Mapping[str, Array] = field(default_factory=dict)
    ratio: Rounds = Rounds()
    gradient: Rounds = Rounds()
    film_strip: Path | None = None
    verdict: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The last folder's name, with its parent's where Lightning chose it."""
        last = self.folders[-1].resolve()
        return f"{last.parent.name}/{last.name}" if last.name.startswith("version_") else last.name

    @property
    def seed(self) -> int | None:
        """`seed_everything` of the configuration."""
        seed = self.config.get("seed_everything")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def read_run(argument: str) -> Run:
    """Reads one run.

    Args:
        argument: a folder, or several joined by `+` where the run was resumed in another one: what an earlier folder
            logged from the later one's first step on is left out, for it was done again.

    Raises:
        ReportError: a folder does not exist, holds nothing that was logged, or a file cannot be read.
    """
    names = [argument] if Path(argument).is_dir() else argument.split("+")
    folders = tuple(Path(name) for name in names)
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"run {folder} is no folder; give the one that holds its metrics.csv")
        if not any(_logged(folder)):
            raise ReportError(f"run {folder} holds no logged data: {_hint(folder)}")
    config_text, verdict, facts = (
        _last(folders, name) for name in ("config.yaml", "over_optimization.json", "run.json")
    )
    reason = _json(verdict).get("reason", "") if verdict else ""
    return Run(
        folders=folders,
        scalars=_join_scalars([_read_scalars(f / "metrics.csv") for f in folders]),
        gold=_join_columns([_read_columns(f / "gold.csv") for f in folders]),
        ratio=_read_rounds([f / "ratio" for f in folders], ("step", "log_ratio", "clipped")),
        gradient=_read_rounds([f / "gradient" for f in folders], ("step", "velocity", "parameter_step", "parameters")),
        film_strip=_last(folders, "samples/film_strip.png"),
        verdict=str(reason),
        config=_yaml(config_text) if config_text else {},
        config_text=config_text.read_text(encoding="utf-8") if config_text else "",
        facts=_json(facts) if facts else {},
        missing=tuple(name for name in (*LOGGED, *DESCRIPTIONS) if not any(any(f.glob(name)) for f in folders)),
    )


LOGGED = ("metrics.csv", "gold.csv", "ratio/round_*.npz", "gradient/round_*.npz")
DESCRIPTIONS = ("config.yaml", "run.json")


def _logged(folder: Path) -> Iterable[Path]:
    return (path for name in LOGGED for path in folder.glob(name))


def _hint(folder: Path) -> str:
    below = sorted({path.relative_to(folder).parts[0] for name in LOGGED for path in folder.glob(f"*/{name}")})
    if below:
        return f"did you mean {' or '.join(str(folder / name) for name in below[:3])}?"
    return f"none of {', '.join(LOGGED)}; log with a CSVLogger or guardlit_callbacks"


def _last(folders: Sequence[Path], name: str) -> Path | None:
    return next((f / name for f in reversed(folders) if (f / name).is_file()), None)


# --- files -----------------------------------------------------------------------------------------------------------


def _checked(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ReportError(f"{path} cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error


def _json(path: Path) -> dict[str, Any]:
    found = _checked(path, lambda: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(found, dict):
        raise ReportError(f"{path} holds a {type(found).__name__}; it must be a mapping")
    return found


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = _checked(path, lambda: yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise ReportError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    return found if isinstance(found, dict) else {}


def _rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and whole rows: the last one may be half written while the run goes on."""
    if not path.is_file():
        return [], []

    def read() -> list[list[str]]:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    header, *rows = _checked(path, read) or [[]]
    return header, [row for row in rows if len(row) == len(header)]


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ReportError(f"{path}:{line}: column {column!r} holds {cell!r}, which is no number") from None


def _read_scalars(path: Path) -> dict[str, Series]:
    """Every key's values over `step`; the mean where a step, or an epoch of many, has several."""
    header, rows = _rows(path)
    if not header:
        return {}
    if "step" not in header:
        raise ReportError(f"{path} has no column 'step'; it must be as Lightning's CSVLogger writes it")
    at, found = header.index("step"), dict[str, list[tuple[int, int, float]]]()
    epoch_at = header.index("epoch") if "epoch" in header else None
    wanted = [(i, key) for i, key in enumerate(header) if key not in ("step", "epoch") and not STEP_KEY.search(key)]
    for line, row in enumerate(rows, start=2):
        step = int(_number(path, line, "step", row[at]))
        epoch = int(_number(path, line, "epoch", row[epoch_at])) if epoch_at is not None and row[epoch_at] else -1
        for i, key in wanted:
            if row[i] and np.isfinite(value := _number(path, line, key, row[i])):
                found.setdefault(key, []).append((epoch, step, value))
    return {key: _series(np.array(values)) for key, values in found.items()}


def _series(rows: Array) -> Series:
    """From (n, 3) rows of epoch, step and value."""
    epochs, steps, values = rows.T
    distinct = np.unique(epochs)
    by_epoch = len(distinct) >= MIN_EPOCHS and len(values) >= 2 * len(distinct)
    _, place = np.unique(epochs if by_epoch else steps, return_inverse=True)
    count = np.bincount(place)
    return Series(np.bincount(place, steps) / count, np.bincount(place, values) / count)


def _read_columns(path: Path) -> dict[str, Array]:
    header, rows = _rows(path)
    numbers = [
        [_number(path, line, name, cell) if cell else np.nan for name, cell in zip(header, row, strict=True)]
        for line, row in enumerate(rows, start=2)
    ]
    return dict(zip(header, np.array(numbers).T, strict=True)) if numbers else {}


def _read_rounds(folders: Sequence[Path], names: Sequence[str]) -> Rounds:
    paths: dict[int, Path] = {}
    for folder in folders:
        here = {int(path.stem.removeprefix("round_")): path for path in sorted(folder.glob("round_*.npz"))}
        paths = {index: path for index, path in paths.items() if index < min(here, default=index + 1)} | here
    every = [paths[index] for index in sorted(paths)]
    chosen = (
        every if len(every) <= MAX_ROUNDS else [every[i] for i in np.linspace(0, len(every) - 1, MAX_ROUNDS, dtype=int)]
    )
    return Rounds([_read_arrays(path, names) for path in chosen], len(every))


def _read_arrays(path: Path, names: Sequence[str]) -> dict[str, Array]:
    def read() -> dict[str, Array]:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file}

    arrays: dict[str, Array] = _checked(path, read)
    return arrays


# --- runs that were resumed in another folder -------------------------------------------------------------------------


def _join_scalars(parts: Sequence[Mapping[str, Series]]) -> dict[str, Series]:
    joined: dict[str, Series] = {}
    for part in parts:
        first = min((series.step[0] for series in part.values()), default=np.inf)
        for key, (step, value) in joined.items():
            joined[key] = Series(step[step < first], value[step < first])
        for key, (step, value) in part.items():
            before = joined.get(key, Series(step[:0], value[:0]))
            joined[key] = Series(np.concatenate([before.step, step]), np.concatenate([before.value, value]))
    return {key: series for key, series in joined.items() if series.step.size}


def _join_columns(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    joined: Mapping[str, Array] = {}
    for part in (part for part in parts if part):
        if not joined:
            joined = part
            continue
        keep = joined["step"] < part["step"].min()
        joined = {
            name: np.concatenate([_column(joined, name)[keep], _column(part, name)]) for name in {**joined, **part}
        }
    return dict(joined)


def _column(columns: Mapping[str, Array], name: str) -> Array:
    return columns.get(name, np.full_like(columns["step"], np.nan))
