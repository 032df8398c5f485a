"""The second study: its commands, its order, its numbers, and sentences that follow from them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from evidence_runs import FakeTrainer  # noqa: E402

from benchmarks.evidence import page, results  # noqa: E402
from benchmarks.evidence.objectives import tables  # noqa: E402
from benchmarks.evidence.objectives.collect import collect  # noqa: E402
from benchmarks.evidence.objectives.evenness import clipped_by_step, max_over_min  # noqa: E402
from benchmarks.evidence.objectives.figures import _frontier, _paths, draw  # noqa: E402
from benchmarks.evidence.objectives.methods import BASELINES, METHODS, PER_STEP, PLAN  # noqa: E402
from benchmarks.evidence.objectives.study import Objectives, cost, shortened  # noqa: E402
from benchmarks.evidence.trials import Trial  # noqa: E402
from guardlit.objective import OBJECTIVES  # noqa: E402

SMALL = replace(PLAN, compared=(0.7, 0.9), levels={"proxy": (0.7, 0.9), "step": (32,)})


def peak(trial: Trial) -> float:
    """VelocityNorm is best, PCPO worst."""
    return {"VelocityNorm": 1.3, "PCPO": 1.1}.get(trial.method, 1.2) + 0.001 * (trial.seed - 44)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Objectives:
    return Objectives(SMALL, tmp_path_factory.mktemp("objectives"), FakeTrainer(peak))


@pytest.fixture(scope="module")
def document(study: Objectives) -> results.Document:
    return json.loads(results.dump(collect(study)))


def test_the_plan_has_every_objective_of_the_line_and_the_baselines():
    line = {preset.__name__ for preset in OBJECTIVES[6:]} | {"FlowGRPO", "GRPOGuard"}
    assert line == {row.objective for row in METHODS.values()}
    assert set(BASELINES) <= set(METHODS)
    assert PLAN.rounds % PLAN.every == 0
    assert sum(stage.cpu_seconds for stage in cost(PLAN)) < 120 * 60


@pytest.mark.parametrize("method", METHODS)
def test_the_commands_are_what_the_methods_say(method: str, tmp_path: Path):
    from guardlit.commands.lightning_cli import settings_of

    (trial,) = [t for t in Objectives(PLAN, tmp_path, None).trials if (t.method, t.seed) == (method, 45)]
    found = settings_of(trial.run.arguments)
    row, model = METHODS[method], found["model"]
    assert model["objective"]["class_path"] == f"guardlit.objective.{row.objective}"
    assert model["objective"]["init_args"]["clip_range"] == row.clip_range
    assert model["optimizer"]["init_args"]["lr"] == PLAN.lr
    assert (found["seed_everything"], found["trainer"]["max_epochs"]) == (45, PLAN.rounds)
    assert found["trainer"]["check_val_every_n_epoch"] == PLAN.every
    assert (model["kl"] is None) == (method not in ("FlowGRPO_KL", "GARDO", "DiverseGRPO"))
    assert (model["data_loss"] is None) == (method != "DDRL")
    assert (model["rollout"]["window"] is None) == (method != "FlashGRPO")
    callbacks = {c["class_path"].rpartition(".")[2]: c["init_args"] for c in found["trainer"]["callbacks"]}
    assert callbacks["GradientNorm"]["parameters_every"] == 0
    assert {"GoldScore", "KLFromBase", "RatioDistribution"} <= callbacks.keys()


def test_a_seed_is_trained_with_all_methods_before_the_next(tmp_path: Path):
    trainer = FakeTrainer(peak)
    plan = replace(SMALL, methods={name: METHODS[name] for name in ("FlowGRPO", "PCPO")})
    assert Objectives(plan, tmp_path, trainer).seeds() == [44, 45, 46]
    order = [(trial.seed, trial.method) for trial in trainer.trained]
    assert order == [(seed, name) for seed in (44, 45, 46) for name in plan.methods]
    again = FakeTrainer(peak)
    Objectives(plan, tmp_path, again)
    assert again.trained == []


def test_only_finished_seeds_are_shown(tmp_path: Path):
    study = Objectives(SMALL, tmp_path, None)
    assert study.seeds() == []
    FakeTrainer(peak)([trial for trial in study.trials if trial.seed == 44 or trial.method == "FlowGRPO"])
    assert study.seeds() == [44]
    document = json.loads(results.dump(collect(study)))
    assert document["seeds"] == [44]
    assert {tuple(own["seeds"]) for own in document["methods"].values()} == {("44",)}
    assert tables.state(document).startswith("1 of 3 seeds are finished (44); 13 methods, 32 rounds each.")


def test_a_failed_run_is_named_and_its_method_left_out(tmp_path: Path):
    fails = FakeTrainer(peak, lambda trial: (trial.method, trial.seed) == ("PCPO", 45))
    study = Objectives(SMALL, tmp_path, fails)
    assert study.seeds() == [44, 45, 46]
    assert set(study.finished()) == set(METHODS) - {"PCPO"}
    assert "Failed: seed_45/PCPO." in tables.state(json.loads(results.dump(collect(study))))


def test_evenness_is_of_the_off_policy_transitions(tmp_path: Path):
    step = np.tile([0, 1], 8)
    log_ratio = np.where(np.arange(16) < 8, 0.0, 1.0)
    clipped = np.zeros(16, bool)
    clipped[[8, 9, 11, 13]] = True  # of four each: one of step 0, three of step 1
    for part, name, out in ((0, 1, ~clipped), (0, 2, ~clipped), (1, 2, clipped)):
        path = tmp_path / f"version_{part}/ratio/round_{name:05d}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, step=step, log_ratio=log_ratio, clipped=out)
    found = clipped_by_step([tmp_path / "version_0", tmp_path / "version_1"])
    assert found == {0: 0.25, 1: 0.75}
    assert max_over_min(found) == 3.0
    assert max_over_min({0: 0.0, 1: 0.5}) is None
    assert max_over_min({}) is None


def test_differences_are_paired_with_each_baseline(document: results.Document):
    rows = document["frontier"]["axes"]["proxy"]["levels"]
    (row,) = [r for r in rows if (r["level"], r["method"]) == (0.9, "VelocityNorm")]
    assert set(row["against"]) == set(BASELINES)
    assert row["against"]["FlowGRPO"]["value"] == pytest.approx(0.1, abs=1e-4)
    assert row["against"]["FlowGRPO"]["by_seed"] == pytest.approx([0.1] * 3, abs=1e-4)
    assert row["scores"]["average"]["value"] == pytest.approx(1.301, abs=1e-4)
    (own,) = [r for r in rows if (r["level"], r["method"]) == (0.9, "FlowGRPO")]
    assert set(own["against"]) == set(BASELINES) - {"FlowGRPO"}


def test_the_verdict_follows_from_the_intervals(document: results.Document):
    lines = tables.verdict(document).splitlines()
    assert len(lines) == len(BASELINES) + 3
    assert "VelocityNorm (at 0.9: +0.100 (" in lines[0].split(" more gold")[0]
    assert "PCPO (at 0.9: -0.100 (" in lines[0].split(" more gold")[1]
    assert "updates to a proxy of 0.7" in lines[-2].lower()
    even = [name for name, row in METHODS.items() if row.clip_range == PER_STEP]
    assert all(name in lines[-1] for name in even)

    undecided = json.loads(json.dumps(document))
    for row in undecided["frontier"]["axes"]["proxy"]["levels"]:
        for found in row["against"].values():
            found["low"], found["high"] = -1.0, 1.0
    (line, *_) = tables.verdict(undecided).splitlines()
    assert "no method is shown to keep more gold; no method is shown to keep less gold" in line


def test_gold_after_equal_updates_is_compared_where_proxies_agree(document: results.Document):
    line = next(line for line in tables.verdict(document).splitlines() if "updates, of the methods" in line)
    assert "VelocityNorm (proxy " in line.split(" more gold")[0]
    assert "PCPO (proxy " in line.split(" more gold")[1]

    apart = json.loads(json.dumps(document))
    for name in ("VelocityNorm", "PCPO"):
        for seed in apart["methods"][name]["seeds"].values():
            seed["curves"]["proxy"] = [value + 2 * tables.SAME_PROXY for value in seed["curves"]["proxy"]]
    line = next(line for line in tables.verdict(apart).splitlines() if "updates, of the methods" in line)
    assert "VelocityNorm (" not in line
    assert "PCPO" not in line


def test_the_clip_per_step_is_seen_to_be_even(document: results.Document):
    spread = {name: [run["max_over_min"] for run in own["clipped"]] for name, own in document["methods"].items()}
    assert max(spread["FlowGRPO_even"]) < 2 < 5 < min(value or np.inf for value in spread["FlowGRPO"])


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_part_of_the_page_renders_with_and_without_results(name: str, document: results.Document, tmp_path: Path):
    without = json.loads(results.dump(collect(Objectives(SMALL, tmp_path, None))))
    for found in (document, without):
        text = tables.TABLES[name](found)
        assert text
        assert len({line.count("|") for line in text.splitlines()}) == 1
    assert draw(without, tmp_path) == []


def test_every_figure_is_drawn_with_every_method(document: results.Document, tmp_path: Path):
    names = {path.name for path in draw(document, tmp_path)}
    assert names == {f"evidence_objectives_{name}.png" for name in tables.CAPTIONS}
    panels = {
        axes.get_title(): axes for axes in _frontier(_paths(document, "proxy"), "proxy").axes if axes.get_visible()
    }
    assert list(panels) == [name for name in METHODS if name not in BASELINES[:2]]
    for axes in panels.values():
        assert len(axes.lines) == 2 + len(PLAN.seeds) + 1
        low, high = axes.get_ylim()
        assert all(low <= value <= high for line in axes.lines for value in line.get_ydata())


def test_the_short_version_has_two_methods_and_one_seed():
    plan = shortened()
    assert (list(plan.methods), plan.seeds) == (["FlowGRPO", "GRPOGuard"], (44,))


def test_the_page_says_what_the_results_say():
    text = (ROOT / "docs/evidence_objectives.md").read_text(encoding="utf-8")
    found = page.published()
    assert {match["name"] for match in page.MARKED.finditer(text)} == set(tables.TABLES)
    assert page.render(text, found) == text
    for method in found["objectives"]["plan"]["methods"]:
        assert method in text
