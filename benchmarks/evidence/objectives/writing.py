"""Writes what the second study shows: one document, and the figures that are drawn from it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.evidence.objectives.collect import collect
from benchmarks.evidence.objectives.figures import draw
from benchmarks.evidence.objectives.study import Objectives
from benchmarks.evidence.results import dump


def write(study: Objectives, folder: Path, images: Path) -> list[Path]:
    """Write the document into a folder and the figures into another, and return all files."""
    document = collect(study)
    path = folder / f"{study.plan.name}.json"
    path.write_text(dump(document), encoding="utf-8")
    return [path, *draw(document, images)]
