import numpy as np
import pytest
from guardlit_callbacks.report.data import read_run
from guardlit_callbacks.report.labels import group
from guardlit_callbacks.report.methods import ratio_by_step
from guardlit_callbacks.report.tables import gradient_table
from run_folders import write_gold, write_gradient, write_ratio


def test_ratio_statistics_are_of_all_samples_of_all_rounds_and_seeds(tmp_path):
    shifts = {"a": -0.5, "b": 0.1}
    samples = [write_ratio(tmp_path / name, i, shift, seed=i) for name, shift in shifts.items() for i in (0, 1)]
    (method,) = group([read_run(str(tmp_path / name)) for name in shifts], ["m", "m"])
    pooled = np.concatenate(samples, axis=1)
    for t, step in ratio_by_step(method).items():
        assert step.by_round == pytest.approx(-0.2)
        assert step.std == pytest.approx(pooled[t].std())
        assert step.pooled == pytest.approx(pooled[t].mean() / pooled[t].std())
        assert step.above == np.mean(pooled[t] > 1e-3)
        assert step.below == np.mean(pooled[t] < -1e-3)
    assert list(ratio_by_step(method)) == [0, 1, 2]


def test_gradient_is_the_mean_of_rounds_and_its_spread_both_ways(tmp_path):
    write_gradient(tmp_path, 0, (1.0, 2.0, 8.0))
    write_gradient(tmp_path, 1, (3.0, 2.0, 2.0))
    (method,) = group([read_run(str(tmp_path))], ["m"])
    assert method.gradient("velocity") == {0: 2.0, 1: 2.0, 2: 5.0}
    assert method.gradient_spread("velocity") == pytest.approx((8 + 1.5) / 2)
    assert method.gradient("parameters") == {}
    html = gradient_table([method])
    assert ">2.50</td>" in html
    assert ">4.75</td>" in html


def test_a_method_of_one_run_keeps_its_interval_and_one_of_several_shows_their_range(tmp_path):
    write_gold(tmp_path / "a", average=(1.0, 1.2), proxy=(0.5, 0.6), noise=0.25)
    write_gold(tmp_path / "b", average=(1.0, 1.5), proxy=(0.5, 0.8), noise=0.25)
    a, b = (read_run(str(tmp_path / name)) for name in "ab")
    one, two = (group(given, ["m"] * len(given))[0].proxy_gold() for given in ([a], [a, b]))
    assert (one.low.tolist(), one.high.tolist()) == ([0.75, 0.95], [1.25, 1.45])
    assert (two.low.tolist(), two.high.tolist()) == ([1.0, 1.2], [1.0, 1.5])
    assert two.gold.tolist() == [1.0, 1.35]
    assert two.proxy.tolist() == pytest.approx([0.5, 0.7])


def test_a_run_without_the_proxys_std_takes_it_from_the_arrays_by_prompt(tmp_path):
    write_gold(tmp_path)
    (method,) = group([read_run(str(tmp_path))], ["m"])
    assert method.proxy_gold().spread is None
    (tmp_path / "gold").mkdir()
    np.savez(tmp_path / "gold/step_00000000.npz", proxy=np.array([0.2, np.nan, 0.6]))
    (method,) = group([read_run(str(tmp_path))], ["m"])
    assert method.proxy_gold().spread == pytest.approx(0.2)
