"""The tables of the frontier, as HTML."""

from __future__ import annotations

import numpy as np

from guardlit_callbacks.frontier import AXES, AxisTable, Estimate, Frontier, Row
from guardlit_callbacks.report.html import DASH, Rows, number, table


def points_table(found: Frontier) -> str:
    """The over-optimization point of each method."""
    interval = interval_name(found)
    header = ["method", "runs", "best gold at step", "proxy", "sqrt(KL)", "gold, best", interval, "gold, last",
              "fall from best to last", interval]  # fmt: skip
    rows = []
    for method in found.methods:
        best, last = method.best, method.last
        places = [str(len(method.seeds)), number(best.step, ".0f"), number(best.proxy), number(best.sqrt_kl)]
        fall = _cells(method.drop) if best.step < last.step else [DASH, DASH]
        gold = [*_cells(best.scores["average"]), number(last.scores["average"].value, ".3f")]
        rows.append([method.label, *places, *gold, *fall])
    return table(header, rows, caption="Over-optimization point: the best gold, mean over runs")


def level_table(found: Frontier, axis: AxisTable) -> str:
    """The Average at equal values of an axis, and the difference from the baseline."""
    header = [AXES[axis.axis], "method", "at step", "gold", interval_name(found), *_compared(found)]
    groups: list[Rows] = [
        [
            [where, row.method, number(row.step, ".0f"), *_cells(row.scores["average"]), *_apart(found, row, "average")]
            for row in rows
        ]
        for where, rows in _groups(axis)
    ]
    return table(header, *groups, text=2, caption=f"Gold at equal {AXES[axis.axis]}")


def scores_table(found: Frontier, axis: AxisTable) -> str:
    """The same of each gold score, in its own unit."""
    header = [AXES[axis.axis], "score", "method", "value", interval_name(found), *_compared(found)]
    groups: list[Rows] = []
    for where, rows in _groups(axis):
        for name in [name for name in rows[0].scores if name != "average"]:
            label = f"{name} ↓" if name in found.lower_is_better else name
            groups.append(
                [
                    [where, label, row.method, *_cells(row.scores[name], "#.4g"), *_apart(found, row, name, "+.3g")]
                    for row in rows
                ]
            )
    return table(header, *groups, text=3)


def interval_name(found: Frontier) -> str:
    """As "95 % interval"."""
    return f"{100 * found.confidence:g} % interval"


def _compared(found: Frontier) -> list[str]:
    """The header of the differences, where there are any."""
    return [f"difference from {found.baseline}", interval_name(found)] if len(found.methods) > 1 else []


def _apart(found: Frontier, row: Row, score: str, pattern: str = "+.3f") -> list[str]:
    """A row's difference from the baseline, where there is more than one method."""
    return _cells(row.differences.get(score), pattern) if len(found.methods) > 1 else []


def _groups(axis: AxisTable) -> list[tuple[str, list[Row]]]:
    """The rows of each level, and those of the mean over the range."""
    levels = dict.fromkeys(row.level for row in axis.levels)
    groups = [(number(level, ".4g"), [row for row in axis.levels if row.level == level]) for level in levels]
    if axis.means:
        groups.append((f"mean of {number(axis.low, '.4g')} to {number(axis.high, '.4g')}", list(axis.means)))
    return groups


def _cells(estimate: Estimate | None, pattern: str = ".3f") -> list[str]:
    """A value and its interval."""
    if estimate is None:
        return [DASH, DASH]
    if not np.isfinite(estimate.low):
        return [number(estimate.value, pattern), DASH]
    return [number(estimate.value, pattern), f"{number(estimate.low, pattern)} to {number(estimate.high, pattern)}"]
