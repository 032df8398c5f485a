"""The frontier's numbers against plain loops, and on runs whose answer is known."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from gold_folders import noisy_run, write_scores
from guardlit_callbacks import bootstrap
from guardlit_callbacks.frontier import MethodPaths, as_json, compare, read_path, rows, write
from guardlit_callbacks.tools.run_files import ReportError

RESAMPLES, SEED = 50, 3


def crossing(x, y, level):
    """y where x first rises to the level, by a loop; NaN if it never does."""
    if x[0] >= level:
        return y[0]
    for t in range(1, len(x)):
        if x[t] >= level:
            return y[t - 1] + (level - x[t - 1]) / (x[t] - x[t - 1]) * (y[t] - y[t - 1])
    return np.nan


def zigzag(rng, evaluations, prompts):
    """Scores and a proxy that turns back, different for each prompt."""
    level = np.array([0.4, 0.5, 0.47, 0.6, 0.55, 0.7, 0.66, 0.8])[:evaluations]
    proxy = level[:, None] + rng.normal(0, 0.03, (evaluations, prompts)) + np.linspace(-0.1, 0.1, prompts)
    scores = {name: rng.uniform(1, 2, (evaluations, prompts)) for name in ("beauty", "distance", "variety")}
    return scores, proxy


def two_methods(folder, seeds=((1, 2, 3), (3, 1, 2)), prompts=7, **options):
    methods, raw = [], {}
    for label, numbers in zip(("a", "b"), seeds, strict=True):
        runs = []
        for seed in numbers:
            scores, proxy = zigzag(np.random.default_rng([seed, ord(label)]), 8, prompts)
            options = {"names": ["beauty", "distance"], "lower_is_better": ["distance"], **options}
            path = write_scores(folder / f"{label}{seed}", scores, proxy, **options)
            runs.append(read_path(path, f"seed {seed}"))
            raw[label, seed] = scores, proxy
        methods.append(MethodPaths(label, tuple(runs)))
    return methods, raw


def averages(scores, chosen):
    """The Average of the chosen prompts at each evaluation, by a loop."""
    beauty, distance = ([np.mean(values[chosen]) for values in scores[name]] for name in ("beauty", "distance"))
    return [(beauty[t] / beauty[0] + distance[0] / distance[t]) / 2 for t in range(len(beauty))]


def brute_force(raw, level, score, resamples=RESAMPLES):
    """Each run's score at the level: of the data, and of each resample of the prompts."""
    prompts = next(iter(raw.values()))[1].shape[1]
    draws = np.random.default_rng(SEED).integers(prompts, size=(resamples, prompts))
    everything = np.arange(prompts)
    found = {key: [] for key in raw}
    for chosen in [everything, *draws]:
        proxies = {key: [np.mean(values[chosen]) for values in proxy] for key, (_, proxy) in raw.items()}
        full = {key: [np.mean(values) for values in proxy] for key, (_, proxy) in raw.items()}
        at = level if chosen is everything else np.mean([crossing(full[k], proxies[k], level) for k in raw])
        for key, (scores, _) in raw.items():
            y = averages(scores, chosen) if score == "average" else [np.mean(v[chosen]) for v in scores[score]]
            found[key].append(crossing(proxies[key], y, at))
    return {key: np.array(values) for key, values in found.items()}


def resampled(seeds, t):
    """Draws of the mean over seeds: of resampled prompts, plus Student's t of the observed seeds."""
    means = np.array([np.mean([seed[b] for seed in seeds]) for b in range(1, len(seeds[0]))])
    return means + t * np.std([seed[0] for seed in seeds], ddof=1) / np.sqrt(len(seeds))


@pytest.mark.parametrize("score", ["average", "variety"])
def test_gold_at_equal_proxy_is_that_of_a_loop(tmp_path, score):
    methods, raw = two_methods(tmp_path)
    found = compare(methods, levels={"proxy": [0.52, 0.6]}, resamples=RESAMPLES, seed=SEED)
    t = np.random.default_rng([SEED, 0]).standard_t(2, size=RESAMPLES)
    for row in found.axes["proxy"].levels:
        expected = brute_force(raw, row.level, score)
        seeds = [run.name for m in methods if m.label == row.method for run in m.runs]
        mine = [expected[row.method, int(name.split()[1])] for name in seeds]
        estimate = row.scores[score]
        assert estimate.by_seed == pytest.approx([seed[0] for seed in mine])
        assert estimate.value == pytest.approx(np.mean([seed[0] for seed in mine]))
        draws = resampled(mine, t)
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.nanquantile(draws, [0.025, 0.975])))
        assert (row.method == "b") == bool(row.differences)
        if row.method == "b":
            paired = [expected["b", seed] - expected["a", seed] for seed in (3, 1, 2)]
            draws, difference = resampled(paired, t), row.differences[score]
            assert difference.by_seed == pytest.approx([seed[0] for seed in paired])
            assert (difference.low, difference.high) == pytest.approx(tuple(np.nanquantile(draws, [0.025, 0.975])))


def test_the_mean_over_the_range_is_the_area_over_the_width(tmp_path):
    methods, raw = two_methods(tmp_path, seeds=((1,), (1,)))
    found = compare(methods, resamples=RESAMPLES, seed=SEED).axes["proxy"]
    cells = found.low + (found.high - found.low) * (np.arange(100) + 0.5) / 100
    values = np.stack([list(brute_force(raw, level, "average").values()) for level in cells])  # (cells, runs, 1 + B)
    crossed = np.isfinite(values).all(axis=1, keepdims=True)
    assert np.isfinite(values[~crossed.repeat(2, axis=1)]).any()  # in some resamples one run stays below the end
    a, b = np.where(crossed, values, 0).sum(axis=0) / crossed.sum(axis=0)
    row_a, row_b = found.means
    assert row_a.scores["average"].value == pytest.approx(a[0])
    difference = row_b.differences["average"]
    ends = np.quantile(b[1:] - a[1:], [0.025, 0.975])
    assert (difference.value, difference.low, difference.high) == pytest.approx((b[0] - a[0], *ends))


def test_at_equal_steps_the_interval_of_one_run_is_that_of_gold_score(tmp_path):
    methods, raw = two_methods(tmp_path, seeds=((5,), (6,)))
    row, _ = compare(methods, seed=4, levels={"step": [30]}).axes["step"].levels
    scores, _ = raw["a", 5]
    above = {"beauty": scores["beauty"][3], "distance": scores["distance"][0]}
    below = {"beauty": scores["beauty"][0], "distance": scores["distance"][3]}
    expected, got = bootstrap(above, below, seed=4), row.scores["average"]
    assert (got.value, got.low, got.high) == pytest.approx(tuple(expected))


def test_methods_of_other_seeds_are_not_paired(tmp_path):
    methods, raw = two_methods(tmp_path, seeds=((1, 2, 3), (4, 5)))
    found = compare(methods, levels={"proxy": [0.6]}, resamples=RESAMPLES, seed=SEED)
    difference = found.axes["proxy"].levels[1].differences["average"]
    expected = brute_force(raw, 0.6, "average")
    b, a = ([expected[label, s] for s in seeds] for label, seeds in (("b", (4, 5)), ("a", (1, 2, 3))))
    t = [np.random.default_rng([SEED, k]).standard_t(n - 1, size=RESAMPLES) for k, n in enumerate((2, 3))]
    draws = resampled(b, t[0]) - resampled(a, -t[1])
    assert difference.by_seed == ()
    assert (difference.low, difference.high) == pytest.approx(tuple(np.nanquantile(draws, [0.025, 0.975])))


def test_the_over_optimization_point_is_the_best_of_the_mean_over_seeds(tmp_path):
    methods, raw = two_methods(tmp_path)
    point, *_ = compare(methods, resamples=RESAMPLES, seed=SEED).methods
    curves = [averages(scores, np.arange(7)) for (label, _), (scores, _) in raw.items() if label == "a"]
    mean = np.mean(curves, axis=0)
    assert point.best.step == 10 * np.argmax(mean)
    assert point.best.scores["average"].value == pytest.approx(mean.max())
    assert point.last.step == 70
    assert point.drop.value == pytest.approx(mean.max() - mean[-1])
    assert point.drop.by_seed == pytest.approx([c[np.argmax(mean)] - c[-1] for c in curves])
    proxies = [proxy.mean(axis=1)[np.argmax(mean)] for (label, _), (_, proxy) in raw.items() if label == "a"]
    assert point.best.proxy == pytest.approx(np.mean(proxies))


# known answers -------------------------------------------------------------------------------------------------------


def known(folder, falls=(0.2, 0.1), **options):
    """Two methods of three seeds, whose gold at proxy p differs by (fall_a - fall_b) (p - 0.5)^2 / 0.25."""
    return [
        MethodPaths(
            label,
            tuple(
                read_path(noisy_run(folder / f"{label}{s}", 10 * k + s, fall, **options), f"seed {s}") for s in range(3)
            ),
        )
        for k, (label, fall) in enumerate(zip("ab", falls, strict=True))
    ]


def test_a_known_difference_is_found_at_every_level_and_over_the_range(tmp_path):
    found = compare(known(tmp_path, kl=np.linspace(0, 2, 9) ** 2)).axes["proxy"]
    rows = [row for row in found.levels if row.method == "b"]
    assert len(rows) == 5
    for row in rows:
        difference, truth = row.differences["average"], 0.1 * (row.level - 0.5) ** 2 / 0.25
        assert difference.low < truth < difference.high
        assert difference.value == pytest.approx(truth, abs=0.02)
    top = rows[-1].differences["average"]
    assert top.low > 0  # and it is no accident
    area = found.means[1].differences["average"]
    assert area.low < 0.1 * (found.high - 0.5) ** 2 / 0.75 < area.high
    assert 0.9 < found.high < 0.96


def test_equal_methods_differ_by_nothing(tmp_path):
    found = compare(known(tmp_path, falls=(0.2, 0.2)))
    for table in found.axes.values():
        for row in (*table.levels, *table.means):
            for difference in row.differences.values():
                assert difference.low <= 0 <= difference.high


def test_the_same_seed_gives_the_same_intervals(tmp_path):
    methods = known(tmp_path)
    once, twice, other = (as_json(compare(methods, seed=seed)) for seed in (0, 0, 1))
    assert once == twice
    assert once["axes"]["proxy"]["levels"] != other["axes"]["proxy"]["levels"]


# what is missing -----------------------------------------------------------------------------------------------------


def test_older_runs_without_scores_by_prompt_have_intervals_over_seeds_only(tmp_path):
    methods, _ = two_methods(tmp_path, by_prompt=False)
    found = compare(methods, levels={"proxy": [0.6]})
    assert found.prompts is None
    note = "Intervals are over seeds only, not over prompts: of a, seed 1, it has no gold/step_00000000.npz."
    assert found.notes[0] == note
    row = found.axes["proxy"].levels[0].scores["average"]
    t = np.random.default_rng([0, 0]).standard_t(2, size=1000)
    draws = row.value + t * np.std(row.by_seed, ddof=1) / np.sqrt(3)
    assert (row.low, row.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_a_single_run_without_scores_by_prompt_has_no_interval(tmp_path):
    methods, _ = two_methods(tmp_path, seeds=((1,), (2,)), by_prompt=False)
    found = compare(methods, levels={"proxy": [0.6]})
    row = found.axes["proxy"].levels[1]
    assert np.isfinite(row.differences["average"].value)
    assert np.isnan([row.scores["average"].low, row.differences["average"].high]).all()
    assert "the intervals of a, b ignore it" in found.notes[-1]


def test_runs_of_other_prompts_are_not_resampled_jointly(tmp_path):
    a, b = known(tmp_path / "30")[0], known(tmp_path / "20", prompts=20)[1]
    found = compare([a, b])
    assert found.prompts is None
    assert "the runs were evaluated on different prompts" in found.notes[0]


def test_without_kl_there_is_no_axis_of_it(tmp_path):
    found = compare(known(tmp_path))
    assert set(found.axes) == {"proxy", "step"}
    assert found.notes == ("Gold at equal sqrt(KL) from the base is not shown: a, seed 0 has none, nor do 5 others.",)


def test_equal_distance_leaves_out_evaluations_without_one(tmp_path):
    distance = np.linspace(0, 2, 9)
    distance[4] = np.nan
    methods = known(tmp_path, kl=distance)
    found = compare(methods, levels={"sqrt_kl": [1.0]}).axes["sqrt_kl"]
    average = [run.gold["average"] for run in methods[0].runs]
    assert found.levels[0].scores["average"].by_seed == pytest.approx([(a[3] + a[5]) / 2 for a in average])
    assert (found.low, found.high) == (0, 2)


def test_without_a_proxy_there_is_no_axis_of_it(tmp_path):
    scores, _ = zigzag(np.random.default_rng(0), 8, 5)
    path = read_path(write_scores(tmp_path / "run", scores, None, kl=np.arange(8.0)))
    found = compare([MethodPaths("a", (path,))])
    assert set(found.axes) == {"sqrt_kl", "step"}
    assert np.isnan(found.methods[0].best.proxy)


def test_one_method_has_no_differences(tmp_path):
    found = compare(known(tmp_path)[:1])
    assert all(not row.differences for row in found.axes["proxy"].levels)
    assert len(found.axes["proxy"].levels) == 5


def test_a_level_that_a_seed_never_crosses_has_no_value(tmp_path):
    fast, slow = known(tmp_path)
    short = read_path(noisy_run(tmp_path / "short", 77, 0.2, evaluations=3, speed=0.01), "seed 2")
    slow = MethodPaths("slow", (*slow.runs[:2], replace(short, proxy=short.proxy - 0.3)))
    slow.runs[2].by_prompt.proxy[:] -= 0.3
    at_fast, at_slow = compare([fast, slow], levels={"proxy": [0.8]}).axes["proxy"].levels
    assert np.isfinite([at_fast.scores["average"].low, at_fast.step]).all()
    assert np.isfinite(at_slow.scores["average"].by_seed).tolist() == [True, True, False]
    assert np.isnan([at_slow.scores["average"].value, at_slow.scores["average"].low, at_slow.step]).all()
    assert np.isnan([at_slow.differences["average"].value, at_slow.differences["average"].low]).all()


def test_runs_without_a_range_in_common_say_which_is_lowest(tmp_path):
    a = noisy_run(tmp_path / "a", 1, 0.1)
    scores, proxy = zigzag(np.random.default_rng(0), 8, 30)
    b = write_scores(tmp_path / "b", {"beauty": scores["beauty"]}, proxy - 5)
    found = compare([MethodPaths("a", (read_path(a),)), MethodPaths("b", (read_path(b),))])
    assert found.axes["proxy"].levels == found.axes["proxy"].means == ()
    assert any("the runs have no range in common; the highest value of b, b is -4." in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "c"}, "the baseline 'c' is none of the methods a, b"),
        ({"levels": {"kl": [1]}}, "levels of 'kl': the axes are 'proxy', 'sqrt_kl', 'step'"),
    ],
)
def test_an_unknown_name_is_refused(tmp_path, options, message):
    with pytest.raises(ReportError, match=message):
        compare(known(tmp_path), **options)


def test_methods_need_runs_and_different_labels(tmp_path):
    a, b = known(tmp_path)
    with pytest.raises(ReportError, match="two methods have the same label among a, a"):
        compare([a, MethodPaths("a", b.runs)])
    for methods in ([], [MethodPaths("a")]):
        with pytest.raises(ReportError, match="at least one method, and at least one run of each"):
            compare(methods)


# files ---------------------------------------------------------------------------------------------------------------


def test_results_are_json_and_a_table(tmp_path):
    found = compare(known(tmp_path, kl=np.linspace(0, 2, 9)), levels={"proxy": [0.8, 2.0]})
    write(found, tmp_path)
    text = (tmp_path / "frontier.json").read_text()
    assert "NaN" not in text
    plain = json.loads(text)
    assert plain == json.loads(json.dumps(as_json(found)))
    row = plain["axes"]["proxy"]["levels"][1]
    assert (row["method"], row["level"]) == ("b", 0.8)
    assert row["differences"]["average"]["value"] == found.axes["proxy"].levels[1].differences["average"].value
    assert plain["axes"]["proxy"]["levels"][2]["scores"]["average"]["value"] is None
    with (tmp_path / "frontier.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(list(rows(found))) == 3 * (4 + 2 + 12 + 2)
    line = next(line for line in lines if line["method"] == "b" and line["score"] == "average")
    assert float(line["difference"]) == row["differences"]["average"]["value"]
    assert len(line["difference_by_seed"].split()) == 3
