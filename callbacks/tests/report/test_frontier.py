"""The frontier on a report's page."""

import json
import re

import numpy as np
import pytest
from gold_folders import noisy_run, write_scores
from guardlit_callbacks.report import ReportError, build
from guardlit_callbacks.report import writer as report
from run_folders import write_config, write_gold, write_metrics

TITLE = "<h2>Frontier: gold at an equal proxy</h2>"


def folders(folder, falls=None, **options):
    """Two methods of two seeds; b keeps more gold at an equal proxy."""
    runs = []
    for k, (label, fall) in enumerate((falls or {"a": 0.3, "b": 0.05}).items()):
        for seed in (1, 2):
            runs.append(noisy_run(folder / f"{label}{seed}", 10 * k + seed, fall, seed_noise=0.001, **options))
            write_config(runs[-1], label, seed=seed)
    return [str(run) for run in runs], [run.name[0] for run in runs]


def page_of(folder, *arguments, **options):
    return build(*arguments, out=folder / "out", **options).read_text()


def text(html):
    """What a reader sees, a space for each element."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def section(page):
    return page[page.index(TITLE) :].split("</section>")[0]


def test_the_page_has_the_frontier_its_tables_and_its_data(tmp_path):
    runs, labels = folders(tmp_path, kl=np.linspace(0, 2, 9))
    page = page_of(tmp_path, runs, labels=labels)
    here = section(page)
    assert here.count("<img ") == 1
    assert "arXiv 2210.10760" in here
    captions = re.findall(r"<caption>([^<]*)</caption>", here)
    assert captions == [
        "Over-optimization point: the best gold, mean over runs",
        "Gold at equal proxy",
        "Gold at equal sqrt(KL) from the base",
        "Gold at equal steps",
    ]
    assert "A 95 % interval is over 30 prompts, resampled jointly for all runs, and over seeds" in here
    found = json.loads((tmp_path / "out/frontier.json").read_text())
    (row,) = (row for row in found["axes"]["proxy"]["means"] if row["method"] == "b")
    value = row["differences"]["average"]["value"]
    assert f'data-name="difference from a">{value:+.3f}<' in here
    assert (tmp_path / "out/frontier.csv").read_text().startswith("axis,level,method,baseline,step,score,value,")


def test_the_verdict_is_at_an_equal_proxy_with_its_uncertainty(tmp_path):
    runs, labels = folders(tmp_path / "apart")
    top = text(page_of(tmp_path / "apart", runs, labels=labels).split(TITLE)[0])
    assert re.search(r"b: at an equal proxy, averaged from 0\.\d+ to 0\.9\d+, gold is 0\.\d{3} higher than a", top)
    assert "so no difference is shown" not in top
    runs, labels = folders(tmp_path / "equal", falls={"a": 0.2, "b": 0.2})
    top = text(page_of(tmp_path / "equal", runs, labels=labels).split(TITLE)[0])
    assert "it contains 0, so no difference is shown" in top
    alone = page_of(tmp_path / "equal", [runs[0], runs[2]], labels=["a", "b"])
    assert "A single run cannot tell how much seeds differ: the intervals of a, b ignore it." in alone


def test_a_baseline_and_levels_can_be_given(tmp_path, capsys):
    runs, labels = folders(tmp_path)
    arguments = [*runs, *(f"--label={label}" for label in labels), "--out", str(tmp_path / "out")]
    assert report.main([*arguments, "--baseline", "b", "--levels", "0.7", "0.85"]) == 0
    found = json.loads((tmp_path / "out/frontier.json").read_text())
    assert found["baseline"] == "b"
    assert [row["level"] for row in found["axes"]["proxy"]["levels"]] == [0.7, 0.7, 0.85, 0.85]
    assert report.main([*arguments, "--baseline", "c"]) == 2
    assert "error: the baseline 'c' is none of the methods a, b" in capsys.readouterr().err


def test_runs_of_before_have_a_frontier_over_seeds(tmp_path):
    """`gold.csv` only, and as few as two evaluations."""
    for name in ("a1", "a2", "b1", "b2"):
        write_gold(tmp_path / name, average=(1.0, 1.2, 0.8 + 0.1 * ("b" in name)), proxy=(0.5, 0.6, 0.75))
    page = page_of(tmp_path, [str(tmp_path / n) for n in ("a1", "a2", "b1", "b2")], labels=list("aabb"))
    here = text(section(page))
    assert "Intervals are over seeds only, not over prompts: of a, a1, it has no gold/step_00000000.npz." in here
    assert "A 95 % interval is over seeds, whose few values" in here
    assert "Gold at equal sqrt(KL) from the base is not shown: a, a1 has none, nor do 3 others." in here


def test_one_method_has_a_frontier_without_differences(tmp_path):
    runs, _ = folders(tmp_path)
    page = page_of(tmp_path, runs[:2], labels=["a", "a"])
    assert "difference from" not in section(page)
    assert "at an equal proxy, averaged" not in page
    assert "Gold at equal proxy" in section(page)


def test_without_gold_there_is_none_and_without_a_proxy_only_the_distance(tmp_path):
    write_metrics(tmp_path / "bare")
    page = page_of(tmp_path / "1", [str(tmp_path / "bare")])
    assert "Not shown: no run has gold.csv with a proxy, which GoldScore writes." in section(page)
    assert not (tmp_path / "1/out/frontier.json").exists()
    scores = {"beauty": np.random.default_rng(0).uniform(1, 2, (4, 5))}
    run = write_scores(tmp_path / "run", scores, None, kl=np.arange(4.0))
    here = section(page_of(tmp_path / "2", [str(run)]))
    assert "Curves of the gold average over sqrt(KL) from the base, of run" in here
    assert "Gold at equal proxy is not shown: run, run has none." in here


def test_a_run_without_gold_is_left_out_of_the_frontier(tmp_path):
    runs, labels = folders(tmp_path)
    for run in runs:
        write_metrics(tmp_path / run)
    write_metrics(tmp_path / "bare")
    page_of(tmp_path, [*runs, str(tmp_path / "bare")], labels=[*labels, "c"])
    found = json.loads((tmp_path / "out/frontier.json").read_text())
    assert [method["label"] for method in found["methods"]] == ["a", "b"]
    with pytest.raises(ReportError, match="the baseline 'c' is none of the methods a, b"):
        page_of(tmp_path, [*runs, str(tmp_path / "bare")], labels=[*labels, "c"], baseline="c")
