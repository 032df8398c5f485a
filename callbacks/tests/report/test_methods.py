import numpy as np
import pytest
import yaml
from guardlit_callbacks.figures import Band
from guardlit_callbacks.figures.plots import ProxyGoldCurve, turning_point
from guardlit_callbacks.report.curves import MAX_POINTS, band, thinned
from guardlit_callbacks.report.data import ReportError, Series, read_run
from guardlit_callbacks.report.labels import ConfigKeys, flatten, group
from guardlit_callbacks.report.methods import ratio_by_step
from guardlit_callbacks.report.tables import comparison_table, gold_table, gradient_table
from run_folders import write_config, write_gold, write_gradient, write_metrics, write_ratio, write_run

KEYS = ConfigKeys("model.objective.class_path")


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


@pytest.mark.parametrize(
    ("gold", "proxy", "noise", "expected"),
    [
        ([1.0, 1.2, 0.9], [1, 2, 3], 0.05, 1),
        ([1.0, 1.2, 0.9], [1, 2, 1.5], 0.05, None),  # the proxy fell as well
        ([1.0, 1.2, 0.9], None, 0.05, 1),
        ([1.0, 1.2, 1.1], [1, 2, 3], 0.08, None),  # 0.1 is less than hypot(0.08, 0.08)
        ([1.0, 0.9, 0.8], [1, 2, 3], 0.05, 0),
        ([1.0, 1.1, 1.2], [1, 2, 3], 0.05, None),
    ],
)
def test_the_turning_point_is_the_best_gold_before_a_fall_beyond_noise_while_the_proxy_rises(
    gold, proxy, noise, expected
):
    gold = np.array(gold)
    given = None if proxy is None else np.array(proxy)
    assert turning_point(ProxyGoldCurve(np.arange(3), given, gold, gold - noise, gold + noise)) == expected


def runs(tmp_path, *configs):
    for i, config in enumerate(configs):
        write_metrics(tmp_path / f"r{i}")
        if config is not None:
            write_config(tmp_path / f"r{i}", **config)
    return [read_run(str(tmp_path / f"r{i}")) for i in range(len(configs))]


def test_seeds_of_one_objective_are_one_method_and_other_settings_another(tmp_path):
    flow = [{"objective": "FlowGRPO", "seed": s, "clip_range": c} for s, c in ((1, 1e-3), (2, 1e-3), (1, 1e-2))]
    methods = group(runs(tmp_path, *flow, {"objective": "GRPOGuard"}), keys=KEYS)
    assert {m.label: m.run_names for m in methods} == {
        "FlowGRPO (clip_range 0.001)": ("seed 1", "seed 2"),
        "FlowGRPO (clip_range 0.01)": ("seed 1",),
        "GRPOGuard": ("seed 1",),
    }


def test_methods_and_seeds_are_named_by_any_keys(tmp_path):
    for name, steps, seed in (("a", 10, 1), ("b", 10, 2), ("c", 20, 1)):
        write_metrics(tmp_path / name)
        config = {"net": {"kind": "my.Net"}, "train": {"steps": steps, "rng": seed}, "out": name}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    read = [read_run(str(tmp_path / name)) for name in "abc"]
    keys = ConfigKeys("net.kind", ("train",), ("train.rng",))
    assert {m.label: m.run_names for m in group(read, keys=keys)} == {
        "Net (steps 10)": ("seed 1", "seed 2"),
        "Net (steps 20)": ("seed 1",),
    }
    assert [m.label for m in group(read)] == ["a", "b", "c"]


def test_a_lightning_cli_that_selects_the_model_by_class_needs_no_keys(tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write_metrics(tmp_path / name)
        config = {"seed_everything": seed, "model": {"class_path": "my.Model", "init_args": {"lr": 1}}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
    (method,) = group([read_run(str(tmp_path / name)) for name in "ab"])
    assert (method.label, method.run_names) == ("Model", ("seed 1", "seed 2"))


def test_without_a_configuration_a_run_is_named_by_its_folder(tmp_path):
    assert [m.label for m in group(runs(tmp_path, None, None), [])] == ["r0", "r1"]
    write_metrics(tmp_path / "mine" / "version_0")
    assert read_run(str(tmp_path / "mine" / "version_0")).name == "mine/version_0"


def test_labels_group_runs_whatever_their_settings(tmp_path):
    methods = group(runs(tmp_path, {"seed": 3}, {"seed": 3, "clip_range": 7}, None), ["a", "a", "b"])
    assert [(m.label, m.run_names) for m in methods] == [("a", ("r0", "r1")), ("b", ("r2",))]


def test_labels_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ReportError, match=r"--label is given 1 times for 2 runs; give one for each"):
        group(runs(tmp_path, None, None), ["a"])
    with pytest.raises(ReportError, match=r"7 methods, and a figure shows 6 at most"):
        group(runs(tmp_path, *[None] * 7), [])


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
    assert "<td>2.50</td>" in html
    assert "<td>4.75</td>" in html


def test_a_method_of_one_run_keeps_its_interval_and_one_of_several_shows_their_range(tmp_path):
    write_gold(tmp_path / "a", average=(1.0, 1.2), proxy=(0.5, 0.6), noise=0.25)
    write_gold(tmp_path / "b", average=(1.0, 1.5), proxy=(0.5, 0.8), noise=0.25)
    a, b = (read_run(str(tmp_path / name)) for name in "ab")
    one, two = (group(given, ["m"] * len(given))[0].proxy_gold() for given in ([a], [a, b]))
    assert (one.low.tolist(), one.high.tolist()) == ([0.75, 0.95], [1.25, 1.45])
    assert (two.low.tolist(), two.high.tolist()) == ([1.0, 1.2], [1.0, 1.5])
    assert two.gold.tolist() == [1.0, 1.35]
    assert two.proxy.tolist() == pytest.approx([0.5, 0.7])


def cells(html):
    rows = html.split("<tbody>", 1)[1].split("<tr>")[1:]
    return [[cell.split("<")[0].split(">")[1] for cell in row.split("<td")[1:]] for row in rows]


def test_the_gold_table_has_the_first_the_best_and_the_last_evaluation(tmp_path):
    method = group([read_run(str(write_run(tmp_path / "run")))], ["FlowGRPO"])
    assert cells(gold_table(method)) == [
        ["FlowGRPO", "seed 1", "first", "0", "0.5000", "2.000", "1.000", "0.950 to 1.050"],
        ["FlowGRPO", "seed 1", "best average", "10", "0.6000", "2.400", "1.200", "1.150 to 1.250"],
        ["FlowGRPO", "seed 1", "last", "20", "0.7500", "1.600", "0.800", "0.750 to 0.850"],
    ]
    assert "<th>beauty ↓</th>" in gold_table(method)


def test_methods_are_compared_at_equal_steps_and_at_equal_proxy(tmp_path):
    write_gold(tmp_path / "slow", average=(1.0, 1.1, 1.3), proxy=(0.5, 0.6, 0.7))
    write_gold(tmp_path / "fast", average=(1.0, 0.9, 0.8, 0.7), proxy=(0.5, 0.8, 0.9, 0.95))
    methods = group([read_run(str(tmp_path / name)) for name in ("slow", "fast")], [])
    assert cells(comparison_table(methods)) == [
        ["step 20", "slow", "20", "0.7000", "2.600", "1.300"],
        ["step 20", "fast", "20", "0.9000", "1.600", "0.800"],
        ["proxy ≥ 0.7", "slow", "20", "0.7000", "2.600", "1.300"],
        ["proxy ≥ 0.7", "fast", "10", "0.8000", "1.800", "0.900"],
    ]
    assert comparison_table(methods[:1]) == ""


def test_settings_are_flattened_to_dotted_keys():
    config = {"model": {"lr": 1, "betas": [0.9, 0.99], "kl": None, "more": {}}}
    assert flatten(config) == {
        "model.lr": "1", "model.betas.0": "0.9", "model.betas.1": "0.99", "model.kl": "null", "model.more": "{}"
    }  # fmt: skip
    assert flatten({}) == {}
