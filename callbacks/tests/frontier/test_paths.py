"""What is read of a run's folder."""

import json

import numpy as np
import pytest
import yaml
from gold_folders import write_scores
from guardlit_callbacks.frontier import Average, read_path
from guardlit_callbacks.tools.run_files import ReportError
from run_folders import write_csv


def scores(evaluations=4, prompts=5, seed=0):
    rng = np.random.default_rng(seed)
    found = {name: rng.uniform(1, 2, (evaluations, prompts)) for name in ("beauty", "distance", "variety")}
    return found, rng.uniform(0, 1, (evaluations, prompts))


CHOSEN = {"names": ["beauty", "distance"], "lower_is_better": ["distance"]}


def test_a_folder_has_the_evaluations_and_the_scores_by_prompt(tmp_path):
    gold, proxy = scores()
    proxy[2, 1] = np.nan  # a failed proxy is left out of the mean
    kl = [0.0, 0.5, np.nan, 1.5]
    path = read_path(write_scores(tmp_path / "run", gold, proxy, kl=kl, **CHOSEN), "seed 7")
    assert (path.name, path.step.tolist(), path.why_not) == ("seed 7", [0, 10, 20, 30], "")
    assert list(path.gold) == ["average", "beauty", "distance", "variety"]
    np.testing.assert_allclose(path.proxy, np.nanmean(proxy, axis=1))
    np.testing.assert_array_equal(path.sqrt_kl, kl)
    assert path.by_prompt.average == Average(("beauty", "distance"), ("distance",))
    np.testing.assert_array_equal(path.by_prompt.scores["variety"], gold["variety"])
    np.testing.assert_array_equal(path.by_prompt.proxy, proxy)
    assert path.lower_is_better == ("distance",)


def test_an_older_folder_has_the_averages_definition_in_its_configuration(tmp_path):
    folder = write_scores(tmp_path / "run", *scores(), **CHOSEN)
    (folder / "gold.json").unlink()
    unknown = read_path(folder)
    assert unknown.by_prompt is None
    assert unknown.why_not.startswith("its Average is not that of its scores by prompt")
    settings = {"average": ["beauty", "distance"], "lower_is_better": ["distance"]}
    gold = {"class_path": "guardlit_callbacks.GoldScore", "init_args": settings}
    config = {"trainer": {"callbacks": [{"class_path": "Other"}, "Plain", gold]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_path(folder).by_prompt.average == Average(("beauty", "distance"), ("distance",))


def test_without_a_definition_all_scores_are_in_the_average(tmp_path):
    folder = write_scores(tmp_path / "run", *scores())
    (folder / "gold.json").unlink()
    assert read_path(folder).by_prompt.average == Average(("beauty", "distance", "variety"))


def test_a_base_that_was_given_is_the_averages(tmp_path):
    gold, proxy = scores()
    folder = write_scores(tmp_path / "run", gold, proxy, names=["beauty"])
    rows = [{"step": 10 * t, "beauty": m, "average": m / 3} for t, m in enumerate(gold["beauty"].mean(axis=1))]
    write_csv(folder / "gold.csv", rows)
    definition = {"average": ["beauty"], "lower_is_better": [], "base": {"beauty": 3.0}}
    (folder / "gold.json").write_text(json.dumps(definition))
    path = read_path(folder)
    means = path.by_prompt.scores["beauty"].mean(axis=1, keepdims=True)
    np.testing.assert_allclose(path.by_prompt.average.of({"beauty": means})[:, 0], means[:, 0] / 3)


def test_a_folder_without_scores_by_prompt_says_so(tmp_path):
    path = read_path(write_scores(tmp_path / "run", *scores(), by_prompt=False))
    assert (path.by_prompt, path.sqrt_kl, path.why_not) == (None, None, "it has no gold/step_00000000.npz")
    assert path.name == "run"


def test_evaluations_of_other_prompts_are_not_resampled(tmp_path):
    gold, proxy = scores()
    folder = write_scores(tmp_path / "run", gold, proxy)
    arrays = {name: values[1] for name, values in gold.items()}
    np.savez(folder / "gold/step_00000010.npz", prompt=np.array(list("abcde")), proxy=proxy[1], **arrays)
    assert read_path(folder).why_not == "its evaluations have different prompts"


def test_a_run_that_was_resumed_in_another_folder_is_one_path(tmp_path):
    gold, proxy = scores(6)
    kl = np.arange(6.0)
    whole = read_path(write_scores(tmp_path / "whole", gold, proxy, kl=kl, **CHOSEN))
    first = write_scores(tmp_path / "a", {n: v[:4] for n, v in gold.items()}, proxy[:4], kl=kl[:4], **CHOSEN)
    second = write_scores(tmp_path / "b", gold, proxy, kl=kl, **CHOSEN)  # `gold.csv` holds the history
    for step in (0, 10, 20):
        (second / f"gold/step_{step:08d}.npz").unlink()
    joined = read_path([first, second])
    np.testing.assert_array_equal(joined.gold["average"], whole.gold["average"])
    np.testing.assert_array_equal(joined.by_prompt.proxy, whole.by_prompt.proxy)
    np.testing.assert_array_equal(joined.sqrt_kl, kl)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gold.csv", "step,beauty\n0,1\n", "has no gold.csv with a column 'average', which GoldScore writes"),
        ("gold.csv", "step,average\n0,\n", "has a gold.csv without a single evaluation"),
        ("gold.csv", "step,average\n0,x\n", "gold.csv:2: column 'average' holds 'x'"),
        ("kl.csv", "step,sqrt_from_base\n0,x\n", "kl.csv:2: column 'sqrt_from_base' holds 'x'"),
        ("gold.json", "[]", "gold.json holds a list; it must be a mapping"),
        ("gold/step_00000010.npz", "no zip", "step_00000010.npz cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, text, message):
    folder = write_scores(tmp_path / "run", *scores())
    (folder / name).write_text(text)
    with pytest.raises(ReportError, match=message):
        read_path(folder)
