"""First crossings against a plain loop."""

import numpy as np
import pytest
from guardlit_callbacks.frontier.crossing import first_crossing, values_at


def loop(x, y, level):
    """y where x first rises to the level; evaluations without x are left out; NaN if it never does."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if np.isfinite(a)]
    for (x0, y0), (x1, y1) in zip([points[0], *points], points, strict=False):
        if x1 >= level:
            return y1 if x1 == x0 else y0 + (level - x0) / (x1 - x0) * (y1 - y0)
    return np.nan


@pytest.mark.parametrize("seed", range(20))
def test_crossings_of_paths_that_turn_back_are_those_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, (5, 8)).cumsum(axis=1)
    x[:, rng.integers(1, 8)] = np.nan
    y, levels = rng.normal(size=(5, 8)), np.sort(rng.normal(0, 2, 6))
    found = values_at(y, first_crossing(x, levels[None]))
    np.testing.assert_allclose(found, [[loop(x[b], y[b], level) for level in levels] for b in range(5)])


def test_a_level_at_or_below_the_start_is_crossed_there_and_one_above_all_never():
    x, y = np.array([[0.5, 0.4, 0.9, 0.7]]), np.array([[1.0, 2.0, 3.0, 4.0]])
    found = values_at(y, first_crossing(x, np.array([[0.1, 0.5, 0.65, 0.9, 0.91]])))
    np.testing.assert_allclose(found, [[1.0, 1.0, 2.5, 3.0, np.nan]])


def test_of_several_crossings_the_first_counts():
    x, y = np.array([[0.0, 1.0, 0.0, 1.0, 2.0]]), np.array([[0.0, 10.0, 20.0, 30.0, 40.0]])
    assert values_at(y, first_crossing(x, np.array([[0.5, 1.0, 1.5]]))).tolist() == [[5.0, 10.0, 35.0]]


def test_every_resample_has_its_level():
    x = np.array([[0.0, 1.0], [0.0, 2.0]])
    assert values_at(x, first_crossing(x, np.array([[0.25], [1.5]]))).tolist() == [[0.25], [1.5]]


def test_values_of_one_row_stand_for_every_resample():
    x, steps = np.array([[0.0, 1.0], [0.0, 2.0]]), np.array([[0.0, 10.0]])
    assert values_at(steps, first_crossing(x, np.array([[0.5]]))).tolist() == [[5.0], [2.5]]
