"""Runs read from their log folders, without torch or Lightning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from guardlit_callbacks.tools.run_files import (
    Columns,
    ReportError,
    column,
    join_tables,
    last_file,
    read_arrays,
    read_json,
    read_table,
    read_yaml,
)
from guardlit_callbacks.tools.statistics import Array

__all__ = ["ReportError", "Rounds", "Run", "Series", "read_run"]

MAX_ROUNDS = 200
"""More rounds than this are sampled evenly: reading thousands takes minutes and changes no printed number."""

MIN_EPOCHS = 10
"""With fewer epochs, logged values are not averaged over epochs but are separate points."""

LOGGED = ("metrics.csv", "gold.csv", "ratio/round_*.npz", "gradient/round_*.npz")
DESCRIPTIONS = ("config.yaml", "run.json")


class Series(NamedTuple):
    """Values over training, without NaN: optimizer steps (n,), rising, and the value at each (n,).

    The step of an epoch's average is that of its middle.
    """

    step: Array
    value: Array


@dataclass(frozen=True)
class Rounds:
    """The arrays of a run's rounds, in order.

    Attributes:
        arrays: by name, for each round that was read.
        found: number of rounds in the folder.
    """

    arrays: Sequence[Mapping[str, Array]] = ()
    found: int = 0


@dataclass(frozen=True)
class Run:
    """One training run; a run that was resumed in another folder has several.

    Attributes:
        folders: in the order of time.
        scalars: logged values by key, without keys of single denoising steps; averaged over epochs (rounds) with
            several values each.
        gold: columns of `gold.csv` by name, with `step`; (n,) each, empty without the file.
        proxy_spread: standard deviation of the proxy over prompts at each evaluation, (n,); for runs without
            `proxy_std` in `gold.csv`.
        ratio: arrays of `RatioDistribution`.
        gradient: arrays of `GradientNorm`.
        film_strip: the film strip of `SampleGrid`; None without one.
        verdict: the last reason of `OverOptimizationStop`; empty if it never acted.
        config: the last folder's `config.yaml`.
        config_text: its text.
        facts: the last folder's `run.json`.
        missing: files that no folder has.
    """

    folders: tuple[Path, ...]
    scalars: Mapping[str, Series] = field(default_factory=dict)
    gold: Mapping[str, Array] = field(default_factory=dict)
    proxy_spread: Array = field(default_factory=lambda: np.zeros(0))
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
        """The last folder's name; with its parent's for Lightning's `version_N`."""
        last = self.folders[-1].resolve()
        return f"{last.parent.name}/{last.name}" if last.name.startswith("version_") else last.name


def read_run(argument: str) -> Run:
    """Reads one run.

    Args:
        argument: a folder, or several joined by `+` if the run was resumed in another folder; values of an earlier
            folder from the later one's first step on are dropped.

    Raises:
        ReportError: a folder does not exist, holds no logged data, or has an unreadable file.
    """
    names = [argument] if Path(argument).is_dir() else argument.split("+")
    folders = tuple(Path(name) for name in names)
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"run {folder} is no folder; give the one that holds its metrics.csv")
        if not any(_logged(folder)):
            raise ReportError(f"run {folder} holds no logged data: {_hint(folder)}")
    config, verdict, facts = (
        last_file(folders, name) for name in ("config.yaml", "over_optimization.json", "run.json")
    )
    scalars = join_tables([read_table(f / "metrics.csv") for f in folders])
    return Run(
        folders=folders,
        scalars={key: series for key in scalars if (series := _series(scalars, key))},
        gold=join_tables([read_table(f / "gold.csv") for f in folders]),
        proxy_spread=_proxy_spread([path for f in folders for path in sorted(f.glob("gold/step_*.npz"))[:2]]),
        ratio=_read_rounds([f / "ratio" for f in folders], ("step", "log_ratio", "clipped")),
        gradient=_read_rounds([f / "gradient" for f in folders], ("step", "velocity", "parameter_step", "parameters")),
        film_strip=last_file(folders, "samples/film_strip.png"),
        verdict=str(read_json(verdict).get("reason", "")) if verdict else "",
        config=read_yaml(config) if config else {},
        config_text=config.read_text(encoding="utf-8") if config else "",
        facts=read_json(facts) if facts else {},
        missing=tuple(name for name in (*LOGGED, *DESCRIPTIONS) if not any(any(f.glob(name)) for f in folders)),
    )


def _logged(folder: Path) -> Iterable[Path]:
    return (path for name in LOGGED for path in folder.glob(name))


def _hint(folder: Path) -> str:
    below = sorted({path.relative_to(folder).parts[0] for name in LOGGED for path in folder.glob(f"*/{name}")})
    if below:
        return f"did you mean {' or '.join(str(folder / name) for name in below[:3])}?"
    return f"none of {', '.join(LOGGED)}; log with a CSVLogger or guardlit_callbacks"


def _series(table: Columns, key: str) -> Series | None:
    """A column without NaN; the mean where a step, or an epoch of many, has several values."""
    present = np.isfinite(table[key])
    if key in ("step", "epoch") or not present.any():
        return None
    step, value = table["step"][present], table[key][present]
    epoch = np.nan_to_num(column(table, "epoch")[present], nan=-1)
    distinct = np.unique(epoch).size
    by_epoch = distinct >= MIN_EPOCHS and value.size >= 2 * distinct
    _, place = np.unique(epoch if by_epoch else step, return_inverse=True)
    count = np.bincount(place)
    return Series(np.bincount(place, step) / count, np.bincount(place, value) / count)


def _read_rounds(folders: Sequence[Path], names: Sequence[str]) -> Rounds:
    paths: dict[int, Path] = {}
    for folder in folders:
        here = {int(path.stem.removeprefix("round_")): path for path in sorted(folder.glob("round_*.npz"))}
        paths = {index: path for index, path in paths.items() if index < min(here, default=index + 1)} | here
    every = [paths[index] for index in sorted(paths)]
    chosen = np.linspace(0, len(every) - 1, min(len(every), MAX_ROUNDS), dtype=int)
    return Rounds([read_arrays(every[i], names) for i in chosen], len(every))


def _proxy_spread(paths: Sequence[Path]) -> Array:
    """Standard deviation over prompts of the proxy in `GoldScore`'s arrays, (paths,)."""
    proxies = [read_arrays(path, ("proxy",)).get("proxy", np.full(1, np.nan)) for path in paths]
    return np.array(
        [float(np.std(proxy[np.isfinite(proxy)])) if np.isfinite(proxy).any() else 0.0 for proxy in proxies]
    )
