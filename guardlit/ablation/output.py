"""An analysis as tables on the screen, and as CSV, JSON and PNG files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from guardlit.ablation.analysis import MEASURES, Analysis
from guardlit.config.console import show, table, times
from guardlit.errors import GuardlitError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

    from guardlit.objective import Objective


def write_analysis(analysis: Analysis, provenance: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `analysis.csv`, `analysis.json` and `analysis.png`.

    Args:
        analysis: what to write.
        provenance: for the JSON file.
        folder: created if it does not exist.

    Returns:
        The files.

    Raises:
        GuardlitError: a folder that cannot be written.
    """
    paths = [folder / f"analysis.{suffix}" for suffix in ("csv", "json", "png")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_csv(paths[0], analysis)
        document = {"provenance": dict(provenance), **_document(analysis)}
        paths[1].write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        analysis_figure(analysis).savefig(paths[2], dpi=150)
    except OSError as error:
        raise GuardlitError(f"the analysis cannot be written to {folder}: {error.strerror or error}") from error
    return paths


def _write_csv(path: Path, analysis: Analysis) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["objective", "step", "t", *MEASURES])
        for row, name in enumerate(analysis.objectives):
            for column, (step, sigma) in enumerate(zip(analysis.steps, analysis.sigma.tolist(), strict=True)):
                writer.writerow([name, step, sigma, *(float(analysis.measures[m][row, column]) for m in MEASURES)])


def _document(analysis: Analysis) -> dict[str, Any]:
    per_objective = {
        name: {
            "clip_range": objective.clip_range,
            "clip_unit": objective.clip_unit,
            "step_limits": _limits(objective, analysis.steps),
            "gradient_norm": float(analysis.gradient_norms[row]),
            **{measure: values[row].tolist() for measure, values in analysis.measures.items()},
        }
        for row, (name, objective) in enumerate(analysis.objectives.items())
    }
    return {
        "measures": MEASURES,
        "steps": analysis.steps,
        "transitions_per_step": analysis.transitions,
        "t": analysis.sigma.tolist(),
        "objectives": per_objective,
        "cosines": _no_nan(analysis.cosines.tolist()),
        "cosines_by_step": _no_nan(analysis.step_cosines.tolist()),
    }


def _limits(objective: Objective, steps: list[int]) -> list[float | None] | None:
    """The limit of the log ratio, or of the KL, at each step, null for none; null where one range holds for all."""
    limits = objective.bound.step_limits
    if limits is None:
        return None
    found = [float(limits[step]) for step in steps]
    return [limit if math.isfinite(limit) else None for limit in found]


def _no_nan(values: Any) -> Any:
    """JSON has no NaN: null instead, in nested lists."""
    if isinstance(values, list):
        return [_no_nan(v) for v in values]
    return None if math.isnan(values) else values


# on the screen --------------------------------------------------------------------------------------------------------


def print_analysis(analysis: Analysis) -> None:
    """Print one table a question."""
    for title, grid in _tables(analysis).items():
        show(title, grid)


def _tables(analysis: Analysis) -> dict[str, Table]:
    m = analysis.measures

    def clipped(row: int, step: int) -> str:
        return f"{m['clipped_above'][row, step]:.2f} / {m['clipped_below'][row, step]:.2f}"

    def ratio(row: int, step: int) -> str:
        return f"{m['log_ratio_mean'][row, step]:.1e} ± {m['log_ratio_std'][row, step]:.1e}"

    def gradient(measure: str) -> Callable[[int, int], str]:
        return lambda row, step: f"{m[measure][row, step]:.1e}"

    velocity, predicted = (_spreads(m[name]) for name in ("velocity_gradient", "predicted_scale"))
    return {
        "fraction of the ratios above / below the clip range": _by_step(analysis, clipped, ["clip", *_clips(analysis)]),
        "log ratio, mean ± standard deviation": _by_step(analysis, ratio),
        "gradient of a transition's loss with respect to the velocity; in brackets, predicted by Table 2": _by_step(
            analysis,
            gradient("velocity_gradient"),
            ["max/min", *(f"{one} ({other})" for one, other in zip(velocity, predicted, strict=True))],
        ),
        "gradient of a step's mean loss with respect to the parameters": _by_step(
            analysis, gradient("parameter_gradient"), ["max/min", *_spreads(m["parameter_gradient"])]
        ),
        "cosine between the parameter gradients, over all steps": _cosine_table(analysis),
    }


def _clips(analysis: Analysis) -> list[str]:
    return [_clip(objective) for objective in analysis.objectives.values()]


def _clip(objective: Objective) -> str:
    if objective.bound.step_limits is not None:
        return "per step"
    ends = objective.clip_range
    if ends is None:
        return "none"
    if objective.auto:
        return f"{ends[1]:.1e}"  # calibrated, so that its ends differ in digits that no one chose
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g}, {ends[1]:g}"


def _spreads(values: Tensor) -> list[str]:
    return [_times(row) for row in values]


def _times(values: Tensor) -> str:
    low, high = float(values.min()), float(values.max())
    return times(high / low if low > 0 else math.nan)


def _by_step(analysis: Analysis, cell: Callable[[int, int], str], footer: list[str] | None = None) -> Table:
    objectives = range(len(analysis.objectives))
    rows = [
        [str(analysis.steps[step]), *(cell(row, step) for row in objectives)] for step in range(len(analysis.sigma))
    ]
    return table(["step", *analysis.objectives], rows, footer)


def _cosine_table(analysis: Analysis) -> Table:
    names = list(analysis.objectives)
    cells = ["-" if math.isnan(c) else f"{c:.3f}" for row in analysis.cosines.tolist() for c in row]
    return table(["", *names], [[name, *cells[i * len(names) :][: len(names)]] for i, name in enumerate(names)])


# as a picture ---------------------------------------------------------------------------------------------------------


def analysis_figure(analysis: Analysis) -> Figure:
    """Clipped fractions, both gradient magnitudes and the cosines, in four panels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    clips, cosines, velocity, parameters = figure.subplots(2, 2).flat
    m = analysis.measures
    labels = [f"{name}, clip {clip}" for name, clip in zip(analysis.objectives, _clips(analysis), strict=True)]
    _draw(clips, analysis, m["clipped_above"], labels)
    _draw(clips, analysis, -m["clipped_below"])
    clips.axhline(0, color="black", linewidth=0.8)
    clips.set(
        title="Fraction of ratios outside the clip range", ylabel="below  (-)     fraction     above  (+)", ylim=(-1, 1)
    )
    for axes, measure, title in (
        (velocity, "velocity_gradient", "Gradient with respect to the velocity\n(dashed: predicted by Table 2)"),
        (parameters, "parameter_gradient", "Gradient with respect to the parameters"),
    ):
        relative = _relative(m[measure])
        labels = [f"{n}, {times}" for n, times in zip(analysis.objectives, _spreads(m[measure]), strict=True)]
        _draw(axes, analysis, relative, labels)
        axes.set(title=title, ylabel="over its geometric mean; legend: max/min", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    _draw(velocity, analysis, _relative(m["predicted_scale"]), dashed=True)
    for axes in (clips, velocity, parameters):
        axes.set_xlabel("denoising step (0 = most noise)")
        axes.set_xticks(range(len(analysis.sigma)), list(map(str, analysis.steps)))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    _draw_cosines(cosines, analysis)
    return figure


def _relative(values: Tensor) -> Tensor:
    """Rows (O, S) over their geometric mean; NaN where a row has a zero."""
    return values / values.log().mean(dim=1, keepdim=True).exp()


def _draw(
    axes: Axes, analysis: Analysis, values: Tensor, labels: list[str] | None = None, dashed: bool = False
) -> None:
    from guardlit_callbacks.figures.plots import MARKERS, PALETTE

    smaller = 5 / max(5, len(analysis.objectives) - 1)  # from 9 points to 4
    for row in range(len(analysis.objectives)):
        marker, line = ("", "--") if dashed else (MARKERS[row], "-")
        label = labels[row] if labels else None
        # later markers are smaller, so that curves that coincide stay visible
        style: dict[str, Any] = {"marker": marker, "ms": 9 - smaller * row, "lw": 1.2, "alpha": 0.9}
        axes.plot(values[row].numpy(), line, color=PALETTE[row], label=label, **style)


def _draw_cosines(axes: Axes, analysis: Analysis) -> None:
    names = list(analysis.objectives)
    axes.imshow(analysis.cosines.numpy(), vmin=-1, vmax=1, cmap="PuOr")
    for i, row in enumerate(analysis.cosines.tolist()):
        for j, cosine in enumerate(row):
            text = "-" if math.isnan(cosine) else f"{cosine:.2f}"
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if abs(cosine) > 0.5 else "black")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("Cosine between the parameter gradients")
