"""The frontier's figures: what is marked, where, and what the band covers."""

from itertools import permutations

import numpy as np
import pytest
from guardlit_callbacks.figures import PALETTE, frontier_figure, run_frontier_figure
from guardlit_callbacks.figures.frontier import hull
from guardlit_callbacks.frontier import Curve
from matplotlib.patches import PathPatch

STEP = np.array([0, 10, 20, 30, 40])
PROXY = np.array([[0.5, 0.6, 0.8, 0.75, 0.9], [0.5, 0.65, 0.7, 0.9, 0.95]])  # the first turns back
GOLD = np.array([[1.0, 1.1, 1.3, 1.2, 1.0], [1.0, 1.2, 1.2, 1.25, 0.9]])
BOTH = Curve(STEP, GOLD, {"proxy": PROXY, "sqrt_kl": np.sqrt(PROXY - 0.5)})


def marks(axes, marker):
    return [tuple(line.get_xydata()[-1]) for line in axes.lines if line.get_marker() == marker]


def test_each_method_has_its_mean_path_the_base_and_its_best_gold():
    other = Curve(STEP, GOLD[::-1] - 0.2 * (GOLD > 1), {"proxy": PROXY})
    figure = frontier_figure({"Flow-GRPO": BOTH, "GRPO-Guard": other})
    proxy, distance = figure.axes
    assert [proxy.get_xlabel(), distance.get_xlabel()] == [
        "proxy reward (its own unit)",
        "sqrt(KL from the base) (sqrt nats)",
    ]
    paths = {line.get_color(): line.get_xydata() for line in proxy.lines if len(line.get_xdata()) == STEP.size}
    np.testing.assert_allclose(paths[PALETTE[0]], np.column_stack([PROXY.mean(0), GOLD.mean(0)]))
    assert set(paths) == set(PALETTE[:2])
    assert marks(proxy, "X") == [(0.5, 1.0)]
    rings = [ring for ring in marks(proxy, "o") if ring[0] in PROXY.mean(0)]
    assert (PROXY.mean(0)[2], 1.25) in rings
    assert PALETTE[1] not in {line.get_color() for line in distance.lines}  # it has no distance
    names = [text.get_text() for text in figure.legends[0].texts]
    assert names == ["Flow-GRPO", "GRPO-Guard", "base", "best gold"]


def test_a_single_run_has_no_band_and_several_have_one():
    single = Curve(STEP, GOLD[:1], {"proxy": PROXY[:1]})
    assert [len(frontier_figure({"a": c}).axes[0].patches) for c in (single, BOTH)] == [0, 1]


def test_the_band_covers_the_paths_of_all_seeds_and_no_more():
    (axes, _) = frontier_figure({"a": BOTH}).axes
    (patch,) = (p for p in axes.patches if isinstance(p, PathPatch))
    parts = [part for part in patch.get_path().to_polygons(closed_only=True) if len(part) > 2]
    assert len(parts) == STEP.size - 1
    for t, part in enumerate(parts):
        corners = {tuple(point) for point in part}
        assert corners <= {(PROXY[s, u], GOLD[s, u]) for s in (0, 1) for u in (t, t + 1)}
        x, y = part[:, 0], part[:, 1]
        assert np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0  # all counterclockwise: overlaps add no color


@pytest.mark.parametrize("seed", range(5))
def test_a_hull_contains_all_points_and_turns_left(seed):
    points = np.random.default_rng(seed).normal(size=(6, 2)).round(1)
    corners = hull(points)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        cross = (b[0] - a[0]) * (points[:, 1] - a[1]) - (b[1] - a[1]) * (points[:, 0] - a[0])
        assert (cross >= -1e-12).all()
    assert {tuple(c) for c in corners} <= {tuple(p) for p in points}


@pytest.mark.parametrize("points", [[[1, 1]] * 4, [[0, 0], [1, 1], [2, 2], [3, 3]]])
def test_points_in_a_line_have_a_hull_too(points):
    for order in permutations(points):
        assert {tuple(c) for c in hull(np.array(order, float))} == {tuple(min(points)), tuple(max(points))}


def test_a_run_so_far_marks_base_best_and_latest():
    run = Curve(STEP, GOLD[:1], {"proxy": PROXY[:1], "sqrt_kl": np.array([[0.0, 1.0, np.nan, 2.0, 3.0]])})
    figure = run_frontier_figure(run)
    axes = figure.axes[0]
    assert (marks(axes, "X"), marks(axes, "o"), marks(axes, "D")) == ([(0.5, 1.0)], [(0.8, 1.3)], [(0.9, 1.0)])
    names = [text.get_text() for text in figure.legends[0].texts]
    assert names == ["base", "evaluations, dark first", "best gold, step 20", "latest, step 40"]
    assert len(figure.axes) == 2
