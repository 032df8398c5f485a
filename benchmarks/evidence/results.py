"""What the finished runs of a world show, as one document that JSON can hold."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from guardlit_callbacks.frontier import MethodPaths, as_json, compare, read_path
from guardlit_callbacks.report.data import Run as Logged
from guardlit_callbacks.report.methods import Method, ratio_by_step

from benchmarks.evidence.curves import logged
from benchmarks.evidence.points import mean_gold, points
from benchmarks.evidence.ranges import off_policy_sizes
from benchmarks.evidence.study import Study
from benchmarks.evidence.trials import Trial
from benchmarks.evidence.worlds import METHODS, ROOT, World

BASELINE = "FlowGRPO"
DIGITS = 5
"""Significant ones of a number in the document."""
LOGGED = re.compile(r"drift/\w+_ratio|kl/sqrt_from_base")
"""Scalars of each run that the document keeps."""
STAGES = ("calibration", "sweep", "settings", "conditions")

Document = dict[str, Any]


def collect(study: Study) -> Document:
    """The document of a world: its stages so far."""
    world = study.world
    document = {
        "config": str(world.config.relative_to(ROOT)),
        "plan": {key: value for key, value in asdict(world).items() if key not in ("name", "config", "gold")},
        "methods": {name: asdict(method) for name, method in METHODS.items()},
        "complete": study.complete,
        "machine": machine(study.of("settings") or study.of("calibration")),
        "cost": {stage: cost_of(study.of(stage)) for stage in STAGES},
        "failed": study.failed,
        "calibration": [_calibration(trial, world.clipped) for trial in study.of("calibration")],
        "sweep": _sweep(study),
        "settings": _settings(study),
        "conditions": {name: _compared(_under(study, name), world) for name in world.conditions},
    }
    return plain(document)  # type: ignore[no-any-return]


def machine(trials: Sequence[Trial]) -> Document:
    """Where the runs ran, and the versions they ran with."""
    facts = logged(trials[0]).facts if trials else {}
    return {"platform": platform.platform(), "python": platform.python_version(), "versions": facts.get("versions", {})}


def cost_of(trials: Sequence[Trial]) -> Document:
    """Runs, rounds and CPU minutes."""
    seconds = sum(trial.run.cpu_seconds() for trial in trials)
    return {"runs": len(trials), "rounds": sum(trial.rounds for trial in trials), "cpu_minutes": seconds / 60}


def _calibration(trial: Trial, fractions: Iterable[float]) -> Document:
    sizes = off_policy_sizes(trial.run.parts())
    found = {f"{fraction:g}": float(np.quantile(sizes, 1 - fraction)) for fraction in fractions}
    return {"objective": trial.method, "lr": trial.lr, "condition": trial.condition, "log_ratio": found}


def _sweep(study: Study) -> Document:
    """Each objective's grid."""
    if study.world.sweep is None:
        return {}
    found = points(study.of("sweep"), study.world.sweep.compared)
    return {name: [asdict(point) for point in grid] for name, grid in found.items()}


def _settings(study: Study) -> list[Document]:
    """The comparison at each setting that several methods have, the reference first."""
    world = study.world
    every = {setting for own in world.settings.values() for setting in own}
    shared = [setting for setting in every if len(study.at(setting)) > 1]
    ordered = sorted(shared, key=lambda setting: (setting != world.reference, setting))
    return [{"setting": asdict(setting), **_compared(study.at(setting), world)} for setting in ordered]


def _under(study: Study, condition: str) -> dict[str, list[Trial]]:
    found: dict[str, list[Trial]] = {}
    for trial in study.of("conditions"):
        if trial.condition == condition:
            found.setdefault(trial.method, []).append(trial)
    return found


def _compared(methods: Mapping[str, Sequence[Trial]], world: World) -> Document:
    """Each method over its seeds, and the frontier of all that have a finished run."""
    frontier = compare(paths(methods), baseline=BASELINE, levels=world.levels) if BASELINE in methods else None
    return {
        "methods": {name: method(name, own, world.compared) for name, own in methods.items()},
        "frontier": None if frontier is None else as_json(frontier),
    }


def paths(methods: Mapping[str, Sequence[Trial]]) -> list[MethodPaths]:
    """Gold over training of each method's seeds."""
    return [
        MethodPaths(name, tuple(read_path(trial.run.parts(), f"seed {trial.seed}") for trial in own))
        for name, own in methods.items()
    ]


def method(name: str, trials: Sequence[Trial], compared: tuple[float, float]) -> Document:
    """What a method's seeds show; gold counts between the proxies `compared`."""
    runs = [logged(trial) for trial in trials]
    found = Method(name, tuple(runs), tuple(f"seed {trial.seed}" for trial in trials))
    return {
        "clip_range": trials[0].clip_range,
        "mean_gold": [mean_gold(run.gold["proxy"], run.gold["average"], compared) for run in runs],
        "ratio": {str(step): asdict(ratio) for step, ratio in ratio_by_step(found).items()},
        "gradient": {kind: found.gradient(kind) for kind in ("velocity", "parameters")},
        "gradient_max_over_min": {kind: found.gradient_spread(kind) for kind in ("velocity", "parameters")},
        "seeds": {str(t.seed): _seed(t, run) for t, run in zip(trials, runs, strict=True)},
    }


def _seed(trial: Trial, run: Logged) -> Document:
    scalars = {key: series for key, series in run.scalars.items() if LOGGED.fullmatch(key)}
    return {
        "cpu_minutes": trial.run.cpu_seconds() / 60,
        "curves": {key: values.tolist() for key, values in run.gold.items()},
        "scalars": {key: {"step": s.step.tolist(), "value": s.value.tolist()} for key, s in scalars.items()},
        "clip_off_policy": _mean(run, "train/clip_off_policy"),
    }


def _mean(run: Logged, key: str) -> float | None:
    return float(run.scalars[key].value.mean()) if key in run.scalars else None


def plain(value: Any) -> Any:
    """What JSON holds, with `DIGITS` digits and null for NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def dump(document: Document) -> str:
    """JSON with each list and object that holds no other on one line."""
    text = json.dumps(document, indent=1, allow_nan=False)
    return re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda match: " ".join(match[0].split()), text) + "\n"
