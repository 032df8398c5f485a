"""The frontier's numbers against plain loops, and on runs whose answer is known."""

import numpy as np
import pytest
from gold_folders import write_scores
from guardlit_callbacks.frontier import MethodPaths, compare, read_path

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


def brute_force(raw, level, score):
    """Each run's score at the level: of the data, and of each resample of the prompts."""
    prompts = next(iter(raw.values()))[1].shape[1]
    draws = np.random.default_rng(SEED).integers(prompts, size=(RESAMPLES, prompts))
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


def ends(draws, t, seeds, noisy=True):
    """Ends of the interval: resampled means plus Student's t of the observed seeds."""
    means = np.array([np.mean([seed[b] for seed in seeds]) for b in range(1, RESAMPLES + 1)])
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
        draws = ends(mine, t, mine)
        assert (estimate.low, estimate.high) == pytest.approx(tuple(np.nanquantile(draws, [0.025, 0.975])))
        assert (row.method == "b") == bool(row.differences)
        if row.method == "b":
            paired = [expected["b", seed] - expected["a", seed] for seed in (3, 1, 2)]
            draws, difference = ends(paired, t, paired), row.differences[score]
            assert difference.by_seed == pytest.approx([seed[0] for seed in paired])
            assert (difference.low, difference.high) == pytest.approx(tuple(np.nanquantile(draws, [0.025, 0.975])))
