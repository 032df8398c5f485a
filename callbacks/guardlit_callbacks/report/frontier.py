"""The frontier in a report: which runs it compares, its figure, and what surrounds its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardlit_callbacks.figures import frontier_figure
from guardlit_callbacks.frontier import AXES, Curve, Frontier, MethodPaths, compare, curve, read_path
from guardlit_callbacks.report.frontier_tables import interval_name, level_table, points_table, scores_table
from guardlit_callbacks.report.html import details, paragraph, section
from guardlit_callbacks.report.methods import Method

if TYPE_CHECKING:
    from guardlit_callbacks.report.sections import EmbedFigure

HOW_TO_READ = (
    "At an equal proxy the method whose curve is higher keeps more gold; at an equal distance from the base it gains "
    "more gold for the same change of the model. A curve that turns down over-optimizes: the proxy rises while gold "
    "falls (Gao et al. 2023, arXiv 2210.10760)."
)


@dataclass(frozen=True)
class Comparison:
    """The frontier of a report's methods.

    Attributes:
        curves: of the figure, by method; those with a proxy or a distance.
        found: the numbers.
    """

    curves: Mapping[str, Curve]
    found: Frontier


def comparison(methods: Sequence[Method], baseline: str, levels: Sequence[float]) -> Comparison | None:
    """The frontier of all runs that have gold scores; None without one.

    Args:
        methods: of the report.
        baseline: label of the method that the others are compared with; by default the first.
        levels: of the proxy; chosen if empty.

    Raises:
        ReportError: `baseline` is no method with gold scores.
    """
    paths = [
        MethodPaths(method.label, tuple(read_path(run.folders, name) for name, run in named))
        for method in methods
        if (named := [pair for pair in zip(method.run_names, method.runs, strict=True) if "average" in pair[1].gold])
    ]
    if not paths:
        return None
    found = compare(paths, baseline=baseline, levels={"proxy": levels} if levels else None)
    curves = {method.label: path for method in paths if (path := curve(method)) and path.axes}
    return Comparison(curves, found)


def frontier_section(compared: Comparison | None, embed: EmbedFigure) -> str:
    """Gold against proxy and distance: figure, tables, notes."""
    title = "Frontier: gold at an equal proxy"
    if compared is None or not compared.curves:
        what = "gold.csv with a proxy, which GoldScore writes"
        return section(title, paragraph(f"Not shown: no run has {what}.", "note"))
    found, curves = compared.found, compared.curves
    shown = [AXES[axis] for axis in ("proxy", "sqrt_kl") if any(axis in curve.axes for curve in curves.values())]
    caption = (
        f"Gold against {' and '.join(shown)}, along the training of each method: mean over runs, and a band with the "
        "paths of all of them. The cross is the base, the ring the best gold, and the method's marker the last "
        "evaluation. Numbers: frontier.json, frontier.csv."
    )
    alt = f"Curves of the gold average over {' and over '.join(shown)}, of {', '.join(curves)}"
    parts = [embed(frontier_figure(curves), "frontier", alt, caption), paragraph(HOW_TO_READ), points_table(found)]
    for axis in found.axes.values():
        if axis.levels:
            parts.append(level_table(found, axis))
            parts.append(details(f"Each score at equal {AXES[axis.axis]}", scores_table(found, axis)))
    parts += [paragraph(note, "note") for note in (_about_intervals(found), *found.notes)]
    return section(title, *parts)


def _about_intervals(found: Frontier) -> str:
    prompts = f"{found.prompts} prompts, resampled jointly for all runs, and over " if found.prompts else ""
    return (
        f"A {interval_name(found)} is over {prompts}seeds, whose few values enter by Student's t. Differences are "
        "paired by prompts and, where methods have the same seeds, by seeds. Gold at a level is interpolated where "
        "training first crosses it."
    )
