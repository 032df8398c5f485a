import numpy as np
from guardlit_callbacks.figures import Band
from guardlit_callbacks.report.curves import MAX_POINTS, band, thinned
from guardlit_callbacks.report.data import Series


def series(step, value):
    return Series(np.array(step), np.array(value, float))


def test_a_band_is_the_mean_and_range_where_all_runs_are():
    both = band([series([0, 1, 2, 3], [0, 1, 2, 3]), series([1, 2, 4], [3, 4, 9])])
    assert both.step.tolist() == [1, 2, 3]
    assert both.mean.tolist() == [2, 3, 4.75]
    assert both.low.tolist() == [1, 2, 3]
    assert both.high.tolist() == [3, 4, 6.5]
    assert both.runs == 2
    assert band([]) is None
    assert band([series([0, 1], [1, 1]), series([5, 6], [1, 1])]) is None


def test_a_long_curve_is_thinned_to_averages():
    n = 3 * MAX_POINTS
    curve = thinned(Band(np.arange(n), np.arange(n) * 2.0, np.zeros(n), np.ones(n), 2))
    assert curve.step[:2].tolist() == [1, 4]
    assert curve.mean[:2].tolist() == [2, 8]
    assert (len(curve.step), curve.runs) == (MAX_POINTS, 2)
