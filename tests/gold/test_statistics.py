"""Means of tasks, intervals and the Average."""

from __future__ import annotations

import numpy as np
import pytest
from guardlit_callbacks import bootstrap

from guardlit.gold import Gold
from guardlit.gold.statistics import Bootstrap, averages, columns_of, estimates
from guardlit.rewards import Composite, JPEGCompressibility, Term

RNG = np.random.default_rng(5)
BASE = {"a": RNG.uniform(1, 5, 60), "b": RNG.uniform(1, 2, 60)}
MODEL = {"a": BASE["a"] + RNG.normal(0.3, 1, 60), "b": RNG.uniform(1, 2, 60)}


def plain(*names: str) -> dict:
    return {name: column for scorer in names for name, column in columns_of(scorer, [None] * 60).items()}


def test_the_average_and_its_interval_are_those_of_the_callback():
    """`GoldScore` and `guardlit evaluate` agree on a checkpoint."""
    ours = averages([BASE, MODEL], plain("a", "b"), ["b"], Bootstrap([None] * 60, 1000))[1]
    theirs = bootstrap({"a": MODEL["a"], "b": BASE["b"]}, {"a": BASE["a"], "b": MODEL["b"]}, n=1000)
    assert (ours.value, ours.low, ours.high) == pytest.approx(tuple(theirs), rel=1e-12)


def test_a_paired_difference_is_surer_than_two_means():
    """By the normal approximation of the mean of differences."""
    found = estimates([BASE, MODEL], plain("a"), Bootstrap([None] * 60, 4000))[1]["a"]
    difference = MODEL["a"] - BASE["a"]
    error = difference.std(ddof=1) / np.sqrt(60)
    assert found.difference == pytest.approx(difference.mean())
    assert found.difference_high - found.difference_low == pytest.approx(2 * 1.96 * error, rel=0.06)
    assert found.high - found.low == pytest.approx(2 * 1.96 * MODEL["a"].std(ddof=1) / np.sqrt(60), rel=0.06)


def test_tasks_count_equally_whatever_their_size():
    tasks = ["x"] * 6 + ["y"] * 2
    scores = np.array([1.0, 1, 1, 0, 0, 0, 0.2, 0.4])
    columns = columns_of("geneval", tasks)
    found = estimates([{"geneval": scores}], columns, Bootstrap([(task,) for task in tasks], 5000))[0]
    assert list(found) == ["geneval", "geneval/x", "geneval/y"]
    assert [found[name].value for name in found] == pytest.approx([0.4, 0.5, 0.3])
    # a task's resamples draw only its prompts: two prompts give three means
    assert (found["geneval/y"].low, found["geneval/y"].high) == pytest.approx((0.2, 0.4))
    drawn = [
        np.random.default_rng(1).choice(part, (20000, len(part))).mean(axis=1) for part in (scores[:6], scores[6:])
    ]
    ends = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    assert (found["geneval"].low, found["geneval"].high) == pytest.approx(tuple(ends), abs=0.02)


def test_a_resample_has_as_many_prompts_of_a_task_as_there_are():
    strata = ["x", "y", "x", "y", "y"]
    ones = np.ones(5)
    drawn = Bootstrap(strata, 200)
    for stratum, size in (("x", 2), ("y", 3)):
        own = np.array([float(s == stratum) for s in strata])
        assert set(drawn.means(ones, own)) == {float(size)}


@pytest.mark.parametrize(
    ("base", "says"),
    [(np.array([1.0, -1.0]), "must be a positive number, got 0.0"), (np.array([3.0, -1.0]), "'a' is too close to 0")],
)
def test_no_average_over_what_cannot_divide(base, says):
    columns = columns_of("a", [None, None])
    with pytest.raises(ValueError, match=says):
        averages([{"a": base}, {"a": np.ones(2)}], columns, [], Bootstrap([None, None], 100))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"scorers": {}}, "gold.scorers is empty"),
        ({"average": []}, "gold.average is empty"),
        ({"average": ["b"]}, "gold.average: there is no scorer 'b'; there are a"),
        ({"lower_is_better": ["b"]}, "gold.lower_is_better: there is no scorer 'b'"),
        ({"resamples": 0}, "gold.resamples=0 must be at least 1"),
        ({"scorers": {"average": JPEGCompressibility()}}, "'average' cannot be a column's name"),
        ({"scorers": {"a/b": JPEGCompressibility()}}, "'a/b' cannot be a column's name"),
        ({"scorers": {"sum": Composite([Term(JPEGCompressibility())])}}, "gold.scorers.sum is a sum of scorers"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Gold(**({"scorers": {"a": JPEGCompressibility()}} | settings))
