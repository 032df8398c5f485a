"""What the finished seeds of the second study show, as one document that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from guardlit_callbacks.frontier import as_json, compare

from benchmarks.evidence.objectives.evenness import clipped_by_step, max_over_min
from benchmarks.evidence.objectives.methods import BASELINES
from benchmarks.evidence.objectives.study import Objectives
from benchmarks.evidence.results import Document, cost_of, machine, method, paths, plain
from benchmarks.evidence.trials import Trial
from benchmarks.evidence.worlds import ROOT


def collect(study: Objectives) -> Document:
    """The document of the study: its finished seeds, of which there may be none."""
    plan, found = study.plan, study.finished()
    document = {
        "plan": {
            "config": str(plan.config.relative_to(ROOT)),
            "methods": {name: asdict(row) for name, row in plan.methods.items()},
            **{key: getattr(plan, key) for key in ("seeds", "lr", "rounds", "every", "compared", "levels")},
        },
        "seeds": study.seeds(),
        "failed": study.failed,
        "machine": machine([trial for own in found.values() for trial in own]),
        "cost": cost_of([trial for own in found.values() for trial in own]),
        "methods": {
            name: method(name, own, plan.compared) | {"clipped": [_clipped(trial) for trial in own]}
            for name, own in found.items()
        },
        "frontier": _frontier(found, plan.levels),
    }
    return plain(document)  # type: ignore[no-any-return]


def _clipped(trial: Trial) -> Document:
    by_step = clipped_by_step(trial.run.parts())
    return {"by_step": by_step, "max_over_min": max_over_min(by_step)}


def _frontier(found: Mapping[str, Sequence[Trial]], levels: Mapping[str, Sequence[float]]) -> Document:
    """Gold at equal proxy, distance and updates, with the differences from each baseline; empty without runs."""
    known = [name for name in BASELINES if name in found]
    if not known:
        return {}
    compared = {name: as_json(compare(paths(found), baseline=name, levels=levels)) for name in known}
    document: Document = compared[known[0]]
    for axis, table in document["axes"].items():
        for kind in ("levels", "means"):
            for place, row in enumerate(table[kind]):
                others = {name: c["axes"][axis][kind][place]["differences"] for name, c in compared.items()}
                row["against"] = {name: d["average"] for name, d in others.items() if d}
                del row["differences"]
    return {key: document[key] for key in ("axes", "methods", "prompts", "resamples", "confidence", "notes")}


def differences(document: Document, axis: str, baseline: str) -> dict[tuple[float, str], Any]:
    """The differences from a baseline by level and method, of those that have one."""
    rows = document["frontier"]["axes"][axis]["levels"] if document["frontier"] else []
    found = {(row["level"], row["method"]): row["against"].get(baseline) for row in rows}
    return {place: value for place, value in found.items() if value and value["value"] is not None}
