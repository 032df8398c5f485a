import numpy as np
import pytest
from guardlit_callbacks import bootstrap, composite

NAMES = ("hpsv2", "imagereward", "unifiedreward")
SD35, FLUX = (0.293, 1.06, 3.31), (0.302, 1.01, 3.31)


@pytest.mark.parametrize(
    ("base", "scores", "average"),
    [
        (SD35, (0.293, 1.06, 3.31), 1.00),
        (SD35, (0.221, 0.02, 2.58), 0.52),
        (SD35, (0.236, 0.85, 3.05), 0.84),
        (SD35, (0.254, 0.87, 3.22), 0.89),
        (SD35, (0.329, 1.40, 3.46), 1.16),
        (SD35, (0.337, 1.47, 3.54), 1.20),
        (SD35, (0.274, 0.82, 3.07), 0.88),
        (SD35, (0.286, 1.06, 3.29), 0.99),
        (FLUX, (0.302, 1.01, 3.31), 1.00),
        (FLUX, (0.269, 0.79, 3.18), 0.88),
        (FLUX, (0.300, 1.08, 3.35), 1.02),
        (FLUX, (0.293, 0.93, 3.25), 0.96),
    ],
)
def test_table_1_to_the_printed_digit(base, scores, average):
    value = composite(dict(zip(NAMES, scores, strict=True)), dict(zip(NAMES, base, strict=True)))
    assert round(value, 2) == average


def test_last_row_of_table_1_within_the_rounding_of_its_inputs():
    value = composite(dict(zip(NAMES, (0.304, 1.07, 3.35), strict=True)), dict(zip(NAMES, FLUX, strict=True)))
    lowest = np.mean([0.3035 / 0.3025, 1.065 / 1.015, 3.345 / 3.315])
    assert value == pytest.approx(1.02603, abs=1e-5)
    assert lowest < 1.025 < value  # 1.02 is what the unrounded inputs may well have given


@pytest.mark.parametrize(
    ("scores", "base", "says"),
    [
        ({"a": 1.0}, {"b": 1.0}, "same scorers; got \\['a'\\] and \\['b'\\]"),
        ({}, {}, "same scorers"),
        ({"a": 1.0}, {"a": 0.0}, "base score of 'a' must be a positive number, got 0.0"),
        ({"a": 1.0}, {"a": -0.3}, "positive number, got -0.3"),
        ({"a": 1.0}, {"a": float("nan")}, "positive number, got nan"),
        ({"a": float("nan")}, {"a": 1.0}, "score of 'a' must be a finite number, got nan"),
    ],
)
def test_composite_refuses(scores, base, says):
    with pytest.raises(ValueError, match=says):
        composite(scores, base)


def test_bootstrap_is_of_the_ratio_of_means():
    values, base = {"a": [1.0, 3.0]}, {"a": [2.0, 1.0]}
    assert bootstrap(values, base).value == pytest.approx(4 / 3)  # the mean of ratios would be 1.75


def test_bootstrap_pairs_the_prompts():
    rng = np.random.default_rng(0)
    base = rng.uniform(1, 5, 100)
    interval = bootstrap({"a": 1.1 * base}, {"a": base})
    assert interval.low == pytest.approx(1.1)
    assert interval.high == pytest.approx(1.1)
    unpaired = bootstrap({"a": 1.1 * base}, {"a": float(base.mean())})
    assert unpaired.high - unpaired.low > 0.1


def test_bootstrap_interval_has_the_width_of_the_standard_error():
    scores = np.random.default_rng(1).normal(2.0, 0.5, 400)
    interval = bootstrap({"a": scores, "b": scores}, {"a": 1.0, "b": 1.0}, n=4000, seed=3)
    error = scores.std() / np.sqrt(400)
    assert interval.value == pytest.approx(scores.mean())
    assert interval.high - interval.value == pytest.approx(1.96 * error, rel=0.08)
    assert interval.value - interval.low == pytest.approx(1.96 * error, rel=0.08)
    assert interval == bootstrap({"a": scores, "b": scores}, {"a": 1.0, "b": 1.0}, n=4000, seed=3)


@pytest.mark.parametrize(
    ("values", "base", "says"),
    [
        ({"a": [1.0, 2.0], "b": [1.0]}, {"a": 1.0, "b": 1.0}, "same prompts, got {'a': 2, 'b': 1}"),
        ({"a": [1.0, float("nan")]}, {"a": 1.0}, "1 of 2 scores of 'a' are not finite, first at 1"),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.0, 3.0]}, "base of 'a' has 3 prompts, the scores 2"),
        ({"a": []}, {"a": 1.0}, "one score per prompt"),
        ({"a": [1.0, 2.0]}, {"a": [2.0, -1.0]}, "too close to 0"),
    ],
)
def test_bootstrap_refuses(values, base, says):
    with pytest.raises(ValueError, match=says):
        bootstrap(values, base)
