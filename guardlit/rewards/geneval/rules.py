"""GenEval's rules: from the objects in an image to its scores.

Three sets of rules over the same detections: `official` is the benchmark's (arXiv:2310.11513), `strict` and
`flow_grpo` are those of the public reward server that Flow-GRPO trains with, the latter with its flaws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from guardlit.rewards.geneval.prompt import TASKS, Clause, Wanted

_MARGIN = 0.1  # fraction of the summed widths (heights) of two boxes that their offset must exceed


@dataclass(frozen=True)
class Found:
    """One detected object.

    Attributes:
        box: left, top, right, bottom in pixels.
        color: by CLIP; None if no clause needs it.
    """

    box: Sequence[float]
    color: str | None = None


Objects = Mapping[str, Sequence[Found]]
"""Detected objects by class, the most confident first."""


@dataclass(frozen=True)
class Verdict:
    """Scores of one image.

    Attributes:
        official: whether the benchmark counts it as correct: at least as many objects as asked for, the most confident
            of them in the right color and place, and fewer than `exclude` says.
        strict: the same with exactly as many, and `exclude` ignored.
        flow_grpo: mean over the checks of how nearly each is met; at most 1, unbounded below.
    """

    official: bool
    strict: bool
    flow_grpo: float


def apply_rules(objects: Objects, wanted: Wanted) -> Verdict:
    """Scores of an image with these objects."""
    strict, checks = _strict(objects, wanted)
    return Verdict(_official(objects, wanted), strict, sum(checks) / len(checks))


def _official(objects: Objects, wanted: Wanted) -> bool:
    """Each clause on the `count` most confident objects of its class; a failed clause cannot be a target."""
    groups: list[Sequence[Found] | None] = []
    for clause in wanted.include:
        found = objects.get(clause.name, ())[: clause.count]
        enough = len(found) == clause.count and _of_color(clause, found) == clause.count
        groups.append(found if enough and _in_place(clause, found, groups) else None)
    too_many = any(len(objects.get(clause.name, ())) >= clause.count for clause in wanted.exclude)
    return not too_many and None not in groups


def _strict(objects: Objects, wanted: Wanted) -> tuple[bool, list[float]]:
    """Whether every clause holds for exactly `count` objects, and the terms of Flow-GRPO's mean.

    Terms of a clause: 1 - |count - found| / count for the number, which is negative from 2 x count + 1 objects on;
    then, if the number is right, the same for the objects of the right color, and for the place, if the color is
    right too, 1 term of 1, or of 0 without a target. With a wrong number all that is left of color and place is one 0.
    A wrong place gives a 0 *and* the 1: surely a mistake, but it is the signal that was trained on.
    """
    groups: list[Sequence[Found] | None] = []
    terms: list[float] = []
    for clause in wanted.include:
        found = objects.get(clause.name, ())
        terms.append(_nearness(clause.count, len(found)))
        met = len(found) == clause.count
        if not met and (clause.color or clause.relation):
            terms.append(0.0)
        if met and clause.color:
            colored = _of_color(clause, found)
            terms.append(_nearness(clause.count, colored))
            met = colored == clause.count
        if met and clause.relation:
            met = _in_place(clause, found, groups)
            terms += [] if met else [0.0]
            terms += [] if groups[clause.target] is None else [1.0]
        groups.append(found if met else None)
    return None not in groups, terms


def _nearness(wanted: int, found: int) -> float:
    return 1 - abs(wanted - found) / wanted


def _of_color(clause: Clause, found: Sequence[Found]) -> int:
    """Number of objects with the color of the clause; all, if it has none."""
    return sum(clause.color is None or thing.color == clause.color for thing in found)


def _in_place(clause: Clause, found: Sequence[Found], groups: Sequence[Sequence[Found] | None]) -> bool:
    """Whether every object has the clause's relation to every object of the target."""
    if clause.relation is None:
        return True
    targets = groups[clause.target]
    return targets is not None and all(clause.relation in relations(a.box, b.box) for a in found for b in targets)


def relations(box: Sequence[float], target: Sequence[float]) -> set[str]:
    """Relations of a box to another: up to two of `RELATIONS`, none if the two are too close.

    The offset of the centers, less a tenth of the summed extents on each axis, is compared with half the distance of
    the centers; in float32, as the benchmark computes it.
    """
    corners = np.array([box, target], dtype=np.float32).reshape(2, 2, 2)  # box, corner, axis
    centers, extents = corners.mean(axis=1), np.abs(corners[:, 1] - corners[:, 0])
    offset = centers[0] - centers[1]
    clear = np.maximum(np.abs(offset) - _MARGIN * extents.sum(axis=0), 0) * np.sign(offset)
    if np.all(np.abs(clear) < 1e-3):
        return set()
    x, y = clear / np.linalg.norm(offset)
    said = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {relation for relation, holds in said.items() if holds}


def task_means(tags: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """GenEval's table: the mean of every task, and `overall`, the mean of these means (not the mean over images).

    Args:
        tags: the task of each image.
        values: its score; NaN makes its task and `overall` NaN.

    Returns:
        The means of the tasks that occur, in the benchmark's order, then `overall`.

    Raises:
        ValueError: no images, different numbers of tags and values, or a tag that is no task of GenEval.
    """
    if len(tags) != len(values) or not tags:
        raise ValueError(f"found {len(tags)} tags and {len(values)} values; each image needs one of both")
    if unknown := set(tags) - set(TASKS):
        raise ValueError(f"found the tag {min(unknown)!r}; GenEval's tasks are {', '.join(TASKS)}")
    by_task = {task: [v for t, v in zip(tags, values, strict=True) if t == task] for task in TASKS}
    means = {task: float(np.mean(scores)) for task, scores in by_task.items() if scores}
    return means | {"overall": float(np.mean(list(means.values())))}
