"""The tables of a report, as HTML."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from guardlit_callbacks.figures import Band
from guardlit_callbacks.report.data import Rounds, Run
from guardlit_callbacks.report.html import DASH, Rows, details, number, percent, preformatted, table
from guardlit_callbacks.report.labels import differences, flatten
from guardlit_callbacks.report.methods import Method, each_run, ratio_by_step
from guardlit_callbacks.tools.statistics import max_over_min

AVERAGE = ("average", "average_low", "average_high")
MAX_COLUMNS = 4
"""More runs than this are rows, not columns, of the table of settings."""

IGNORED = ("trainer.default_root_dir", "run.json: command")
"""Settings that differ between runs without meaning."""

PARTS = {"velocity": "d loss / d velocity", "parameters": "d loss / d parameters"}


def contents_table(methods: Sequence[Method]) -> str:
    """What each run's folders hold."""
    header = ["method", "run", "folder", "last step", "gold evaluations", "ratio rounds", "gradient rounds", "missing"]
    rows = [
        [
            method.label,
            name.replace(" ", "\N{NO-BREAK SPACE}"),
            " + ".join(map(str, run.folders)),
            number(_last_step(run), ".0f"),
            str(len(run.gold.get("step", ()))),
            _rounds(run.ratio),
            _rounds(run.gradient),
            ", ".join(run.missing) or DASH,
        ]
        for method, name, run in each_run(methods)
    ]
    return table(header, rows, text=3, wrap=True)


def _rounds(rounds: Rounds) -> str:
    read = len(rounds.arrays)
    return str(rounds.found) if read == rounds.found else f"{rounds.found} ({read} read)"


def _last_step(run: Run) -> float:
    return max([*(float(s.step[-1]) for s in run.scalars.values()), *run.gold.get("step", ())], default=np.nan)


# --- gold -------------------------------------------------------------------------------------------------------------


def gold_table(methods: Sequence[Method]) -> str:
    """Scores at the first, the best and the last evaluation of each run."""
    scorers = _scorers(methods)
    columns = ["proxy", *map(_arrow(methods), scorers), "average", "95 % interval"]
    header = ["method", "run", "evaluation", "step", *columns]
    return table(header, *(_gold_rows(m.label, name, run, scorers) for m, name, run in each_run(methods)), text=3)


def _gold_rows(label: str, name: str, run: Run, scorers: Sequence[str]) -> Rows:
    if not run.gold:
        return []
    places = {"first": 0, "best average": int(np.nanargmax(run.gold["average"])), "last": -1}
    rows = []
    for when, i in places.items():
        at: dict[str, float] = {column: float(values[i]) for column, values in run.gold.items()}
        interval = f"{number(at.get('average_low'), '.3f')} to {number(at.get('average_high'), '.3f')}"
        values = [number(at.get(column)) for column in ("proxy", *scorers)]
        rows.append([label, name, when, str(int(at["step"])), *values, number(at["average"], ".3f"), interval])
    return rows


def _scorers(methods: Sequence[Method]) -> list[str]:
    names = dict.fromkeys(name for m in methods for run in m.runs for name in run.gold)
    return [name for name in names if name not in ("step", "proxy", "proxy_std", *AVERAGE)]


def _arrow(methods: Sequence[Method]) -> Callable[[str], str]:
    """Marks scorers of which less is better, by the `GoldScore` of each configuration."""
    falling: set[str] = set()
    for _, _, run in each_run(methods):
        callbacks = run.config.get("trainer", {}).get("callbacks") or []
        for callback in (c for c in callbacks if isinstance(c, Mapping)):
            falling |= set((callback.get("init_args") or {}).get("lower_is_better") or [])
    return lambda name: f"{name} ↓" if name in falling else name


# --- per step ---------------------------------------------------------------------------------------------------------


def ratio_table(methods: Sequence[Method]) -> str:
    """The log ratio at each denoising step."""
    header = ["method", "denoising step", "mean / std, average of rounds", "mean / std, all samples", "std of ratio",
              "clipped above (%)", "clipped below (%)"]  # fmt: skip
    groups = [
        [
            [method.label, str(t), number(s.by_round, "+.2f"), number(s.pooled, "+.2f"), number(s.std, ".2e"),
             percent(s.above), percent(s.below)]
            for t, s in ratio_by_step(method).items()
        ]
        for method in methods
    ]  # fmt: skip
    return table(header, *groups)


def gradient_table(methods: Sequence[Method]) -> str:
    """Mean gradient norm at each denoising step, and largest over smallest."""
    curves = {(m.label, kind): curve for kind in PARTS for m in methods if (curve := m.gradient(kind))}
    spreads = {(m.label, kind): m.gradient_spread(kind) for kind in PARTS for m in methods}
    steps = sorted({t for curve in curves.values() for t in curve})
    rows = [[str(t), *(number(curve.get(t), ".3e") for curve in curves.values())] for t in steps]
    overall = [
        ["max / min of these", *(number(max_over_min(curve), ".2f") for curve in curves.values())],
        ["max / min, average of rounds", *(number(spreads[key], ".2f") for key in curves)],
    ]
    return table(["denoising step", *(f"{label}: {PARTS[kind]}" for label, kind in curves)], rows, overall)


def change_table(panels: Mapping[str, tuple[str, Mapping[str, Band]]]) -> str:
    """First and last value of each curve, and their ratio.

    Args:
        panels: key -> its unit, and method -> curve.
    """
    header = ["statistic", "unit", "method", "first", "last", "last / first"]
    groups = [
        [
            [key.rpartition("/")[2], unit, label, number(first := float(curve.mean[0])),
             number(last := float(curve.mean[-1])), number(last / first if first else np.nan, ".2f")]
            for label, curve in curves.items()
        ]
        for key, (unit, curves) in panels.items()
    ]  # fmt: skip
    return table(header, *groups, text=3)


# --- settings ---------------------------------------------------------------------------------------------------------


def settings_parts(methods: Sequence[Method]) -> list[str]:
    """Settings in which the runs differ, their common provenance, and the configurations in full."""
    names = [f"{method.label}, {name}" for method, name, _ in each_run(methods)]
    runs = [run for _, _, run in each_run(methods)]
    settings = [flatten(run.config) | flatten(run.facts, "run.json: ") for run in runs]
    differing = [key for key in differences(settings) if not key.startswith(IGNORED)]
    corner = "run" if len(runs) > MAX_COLUMNS else "setting"
    grid = [[corner, *names], *([key, *(setting.get(key, DASH) for setting in settings)] for key in differing)]
    if len(runs) > MAX_COLUMNS:
        grid = [list(column) for column in zip(*grid, strict=True)]
    header, *rows = grid
    caption = "Where the runs differ"
    parts = [table(header, rows, text=len(header), caption=caption, wrap=True)] if differing else []
    common = [
        [key, value]
        for key, value in flatten(runs[0].facts).items()
        if f"run.json: {key}" not in differing and not key.startswith("command.")
    ]
    if common:
        header = ["run.json", "every run" if len(runs) > 1 else names[0]]
        parts.append(table(header, common, text=2, caption="Provenance"))
    for name, run in zip(names, runs, strict=True):
        if isinstance(command := run.facts.get("command"), list):
            parts.append(details(f"command: {name}", preformatted(" ".join(map(str, command)))))
        if run.config_text:
            parts.append(details(f"config.yaml: {name}", preformatted(run.config_text)))
    return parts


def made_with() -> str:
    """The software that made the report."""
    names = ("guardlit-callbacks", "matplotlib", "numpy")
    return f"Made with {', '.join(f'{name} {_version(name)}' for name in names)}, Python {platform.python_version()}."


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
