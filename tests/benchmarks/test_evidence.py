"""benchmarks/evidence: the plan, fair choices, what is skipped, and a page that says what the results say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from evidence_runs import FakeTrainer  # noqa: E402

from benchmarks.evidence import cost, figures, page, results, tables  # noqa: E402
from benchmarks.evidence.points import LEVELS, mean_gold, points  # noqa: E402
from benchmarks.evidence.ranges import ClipRanges, off_policy_sizes  # noqa: E402
from benchmarks.evidence.study import complete, shortened  # noqa: E402
from benchmarks.evidence.trials import Planner, Trial  # noqa: E402
from benchmarks.evidence.worlds import DIGITS, METHODS, OBJECTIVES, PAIR, PUBLISHED_KL, WORLDS, Setting, Sweep  # noqa: E402
from guardlit.objective import PRESETS  # noqa: E402
from guardlit.rounds.plan import RoundPlan, candidates  # noqa: E402

TIGHT, LOOSE = Setting(2e-3, 0.5), Setting(2e-3, 0.2)
SMALL = replace(
    DIGITS,
    compared=(0.7, 0.9),
    sweep=Sweep(learning_rates=(1e-3, 2e-3), clipped=(0.2, 0.5), rounds=32, seed=7, compared=(0.7, 0.9)),
    settings={**dict.fromkeys(METHODS, (TIGHT,)), **dict.fromkeys(PAIR, (TIGHT, LOOSE))},
    levels={"proxy": (0.7, 0.9)},
    longer={"FlowGRPO": 96},
    conditions=dict(list(DIGITS.conditions.items())[:2]),
)
NIGHT = 8 * 2 * 3600
"""CPU seconds of a night on two cores, for all worlds."""


# the plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_the_plan_is_fair(world):
    assert {method.objective for method in METHODS.values()} == {preset.__name__ for preset in PRESETS}
    assert set(world.settings) == set(METHODS)
    assert len(world.seeds) >= 3
    trained = {name: own for name, own in world.settings.items() if not METHODS[name].options}
    assert all(world.reference in own for own in trained.values())
    assert len({trained[name] for name in PAIR}) == 1
    assert all(set(own) <= set(trained[PAIR[0]]) for own in world.settings.values())
    assert world.compared[1] in world.levels["proxy"]
    looks = [world.sweep.rounds] if world.sweep else []
    assert all(n % world.every == 0 for n in (*looks, world.rounds, *world.longer.values(), world.condition_rounds))
    assert world.sweep is None or not {world.sweep.seed} & {*world.seeds, *world.condition_seeds}


def test_three_conditions_are_tried():
    assert max(len(world.conditions) for world in WORLDS.values()) >= 3


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_the_rounds_of_every_condition_divide(world):
    configured = yaml.safe_load(world.config.read_text())["data"]
    for options in ((), *world.conditions.values()):
        pairs = zip(options[::2], options[1::2], strict=True)
        changed = {key.removeprefix("--data."): int(value) for key, value in pairs if "data" in key}
        data = {**configured, **changed}
        numbers = [data[k] for k in ("prompts_per_round", "images_per_prompt", "updates_per_round")]
        plan = RoundPlan(*numbers, inner_epochs=1, micro_batch=1, train_steps=9)
        assert 80 <= plan.images <= 160
        assert 8 <= candidates(plan, data["micro_batch"], one_step=True)[0] <= data["micro_batch"]


def test_all_worlds_fit_into_a_night():
    assert 0 < sum(stage.cpu_seconds for world in WORLDS.values() for stage in cost.full(world)) < NIGHT
    assert sum(stage.cpu_seconds for world in WORLDS.values() for stage in cost.short(world)) < 25 * 2 * 60


def test_the_kl_penalty_is_the_published_one():
    from guardlit.commands.lightning_cli import settings_of

    published = settings_of(["fit", "--config", str(ROOT / "configs/sd35_ocr_flow_grpo.yaml"), "--data.train", "x.txt"])
    values = dict(zip(PUBLISHED_KL[::2], PUBLISHED_KL[1::2], strict=True))
    given = {name: value for name, value in published["model"]["kl"].items() if value is not None}
    assert given == {"weight": float(values["--model.kl.weight"]), "kind": values["--model.kl.kind"]}


def test_the_commands_say_what_the_plan_says(tmp_path: Path, capsys):
    from guardlit.commands.lightning_cli import settings_of

    planner = Planner(DIGITS, tmp_path)
    trials = planner.sweep(["FlowGRPO"], lambda *_: 3e-5)[:1]
    trials += planner.conditions(lambda *_: 3e-5)[2:4]
    trials += planner.calibrations(["RatioNorm"])[:1]
    trials += planner.settings({"FlowGRPO_KL": [Setting(2e-3, 0.5)]}, lambda *_: 3e-5)[:1]
    found = [settings_of(trial.run.arguments) for trial in trials]
    objectives = [s["model"]["objective"]["class_path"].rpartition(".")[2] for s in found]
    assert objectives == ["FlowGRPO", "FlowGRPO", "GRPOGuard", "RatioNorm", "FlowGRPO"]
    clips = [s["model"]["objective"]["init_args"]["clip_range"] for s in found]
    assert clips == [3e-5, 3e-5, 3e-5, "auto", 3e-5]
    assert [s["model"]["optimizer"]["init_args"]["lr"] for s in found] == [1e-3, 2e-3, 2e-3, 1e-3, 2e-3]
    assert [s["model"]["kl"] is None for s in found] == [True, True, True, True, False]
    assert [s["model"]["sde"]["init_args"]["noise_level"] for s in found] == [0.7, 0.3, 0.3, 0.7, 0.7]
    assert [s["seed_everything"] for s in found] == [7, 44, 44, 7, 44]
    of = 32, DIGITS.condition_rounds, DIGITS.calibration_rounds, DIGITS.rounds
    assert [s["trainer"]["max_epochs"] for s in found] == [of[0], of[1], of[1], *of[2:]]
    assert [s["data"]["val"] is None for s in found] == [False, False, False, True, False]
    listed = [c["class_path"].rpartition(".")[2] for c in found[0]["trainer"]["callbacks"]]
    names = set(listed)
    assert len(listed) == len(names)
    assert {"GoldScore", "KLFromBase", "DriftSentinels", "RatioDistribution", "GradientNorm"} <= names
    assert not {"SampleGrid", "ExportAtEnd", "OverOptimizationStop"} & names
    kept = [c["init_args"] for c in found[-1]["trainer"]["callbacks"] if c["class_path"].endswith(".ModelCheckpoint")]
    assert [(c["every_n_epochs"], c["save_top_k"]) for c in kept] == [(DIGITS.every, -1)]


def test_the_dry_run_prints_the_cost(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.evidence", "digits", "--dry-run", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "hours with 2 jobs on 2 idle cores" in done.stdout
    assert not (tmp_path / "out").exists()


# clip ranges ----------------------------------------------------------------------------------------------------------


def test_a_range_clips_the_fraction_of_the_off_policy_transitions(tmp_path: Path):
    planner = Planner(SMALL, tmp_path)
    trials = planner.calibrations(["FlowGRPO"])
    FakeTrainer()(trials)
    ranges = ClipRanges(trials)
    for trial in trials:
        log_ratio = np.load(trial.run.folder / "version_0/ratio/round_00001.npz")["log_ratio"]
        off_policy = np.abs(log_ratio[log_ratio != 0])
        assert 0 < off_policy.size < log_ratio.size
        for fraction in (0.05, 0.2, 0.5):
            clip = ranges("FlowGRPO", trial.lr, fraction, "")
            assert float(np.mean(off_policy > clip)) == pytest.approx(fraction, abs=0.03)
            assert clip == float(f"{clip:.1e}")
    assert ranges("FlowGRPO", 2e-3, 0.2, "") == pytest.approx(2 * ranges("FlowGRPO", 1e-3, 0.2, ""), rel=0.1)
    with pytest.raises(KeyError):
        ranges("GRPOGuard", 1e-3, 0.2, "")


def test_a_later_part_of_a_run_replaces_its_rounds(tmp_path: Path):
    for part, value in (("version_0", 1.0), ("version_1", 3.0)):
        (tmp_path / part / "ratio").mkdir(parents=True)
        np.savez(tmp_path / part / "ratio/round_00002.npz", log_ratio=np.array([0.0, -value]))
    np.savez(tmp_path / "version_0/ratio/round_00001.npz", log_ratio=np.array([0.0, 2.0]))
    sizes = off_policy_sizes([tmp_path / "version_0", tmp_path / "version_1"])
    assert sorted(sizes) == [2.0, 3.0]


# points ---------------------------------------------------------------------------------------------------------------


def test_mean_gold_is_taken_at_equal_proxy():
    proxy, gold = np.array([0.5, 0.7, 0.65, 0.9]), np.array([1.0, 1.2, 5.0, 1.0])
    # from 0.5 to 0.7 gold rises to 1.2; above, the first crossing lies between the last two evaluations
    levels = np.linspace(0.6, 0.8, LEVELS)
    expected = [1 + (x - 0.5) if x <= 0.7 else 5 - 4 * (x - 0.65) / 0.25 for x in levels]
    assert mean_gold(proxy, gold, (0.6, 0.8)) == pytest.approx(np.mean(expected), abs=1e-12)
    assert mean_gold(proxy, gold, (0.6, 0.91)) is None


# the stages -----------------------------------------------------------------------------------------------------------


def peak(trial: Trial) -> float:
    """RatioNorm is best."""
    return 1.3 if trial.method == "RatioNorm" else 1.2


def test_every_stage_follows_from_the_one_before_and_nothing_is_trained_twice(tmp_path: Path, capsys):
    trainer = FakeTrainer(peak)
    study = complete(SMALL, tmp_path, trainer)
    assert study.complete
    planned = Counter(trial.stage for trial in study.trials)
    estimated = {stage.stage: stage.runs for stage in cost.full(SMALL)}
    assert planned == estimated
    rounds = Counter[str]()
    for trial in study.trials:
        rounds[trial.stage] += trial.rounds
    assert rounds == {stage.stage: stage.rounds for stage in cost.full(SMALL)}
    assert len({trial.run.folder for trial in study.trials}) == len(study.trials) == len(trainer.trained)
    assert {trial.seed for trial in study.of("settings")} == set(SMALL.seeds)
    assert {name: len(own) for name, own in study.at(TIGHT).items()} == dict.fromkeys(METHODS, 3)
    assert list(study.at(LOOSE)) == list(PAIR)

    again = FakeTrainer(peak)
    assert complete(SMALL, tmp_path, again).complete
    assert again.trained == []
    removed = study.of("settings")[3].run.folder
    (removed / "ablate.json").write_text((removed / "ablate.json").read_text().replace("true", "false", 1))
    assert not complete(SMALL, tmp_path, None).complete  # reads only
    complete(SMALL, tmp_path, again)
    assert [trial.run.folder for trial in again.trained] == [removed]


def test_a_world_without_a_sweep_calibrates_what_it_trains(tmp_path: Path, capsys):
    world = replace(SMALL, sweep=None)
    study = complete(world, tmp_path, FakeTrainer(peak))
    assert study.complete
    assert study.of("sweep") == []
    assert {trial.lr for trial in study.of("calibration")} == {2e-3}
    assert results.collect(study)["sweep"] == {}


def test_the_points_of_the_sweep_say_how_far_a_run_got(tmp_path: Path, capsys):
    study = complete(SMALL, tmp_path, FakeTrainer(peak))
    found = points(study.of("sweep"), (0.7, 0.9))
    assert list(found) == list(OBJECTIVES)
    assert {p.setting for p in found["RatioNorm"]} == set(SMALL.sweep.settings)
    means = [p.frontier for p in found["RatioNorm"]]  # 1.1125 up to 0.8, then 1.225
    assert means == pytest.approx([1.16875] * 4, abs=1e-3)
    assert {p.frontier for p in points(study.of("sweep"), (0.7, 0.95))["FlowGRPO"]} == {None}


def test_a_failed_run_is_named_and_the_next_stages_do_without_it(tmp_path: Path, capsys):
    def fails(trial: Trial) -> bool:
        diverged = trial.stage == "sweep" and trial.method == "GRPOGuard" and trial.setting == Setting(1e-3, 0.5)
        return diverged or (trial.stage == "calibration" and trial.method == "TempFlowGRPO" and trial.lr == 2e-3)

    study = complete(SMALL, tmp_path, FakeTrainer(peak, fails))
    assert study.complete
    place = "sweep/GRPOGuard/lr_0.001_clipped_0.5/seed_7"
    assert study.failed == {place: "exit code 1", "calibration/base/TempFlowGRPO/lr_0.002": "exit code 1"}
    assert set(study.at(TIGHT)) == set(METHODS) - {"TempFlowGRPO"}
    document = results.collect(complete(SMALL, tmp_path, None))
    assert document["failed"] == study.failed
    assert "failed" in tables.sweep(document)
    assert "TempFlowGRPO" not in tables.settings(document)


def test_the_short_version_trains_the_pair_once(tmp_path: Path):
    trainer = FakeTrainer()
    study = shortened(DIGITS, tmp_path, trainer)
    assert [(t.stage, t.method) for t in trainer.trained] == [(s, m) for s in ("calibration", "settings") for m in PAIR]
    assert [stage.rounds for stage in cost.short(DIGITS)] == [2 * DIGITS.calibration_rounds, 2 * DIGITS.short_rounds]
    assert {t.seed for t in study.of("settings")} == set(DIGITS.seeds[:1])
    assert {t.setting for t in study.of("settings")} == {DIGITS.reference}


# results and the page -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> results.Document:
    folder = tmp_path_factory.mktemp("evidence")
    study = complete(SMALL, folder, FakeTrainer(peak))
    text = results.dump({"digits": results.collect(study)})
    assert max(map(len, text.splitlines())) < 3000
    return json.loads(text)["digits"]


def test_the_document_holds_what_the_runs_wrote(document: results.Document):
    assert document["complete"]
    assert document["cost"]["settings"] == {"runs": 27, "rounds": 27 * 80 + 6 * 16, "cpu_minutes": 27.0}
    reference, other = document["settings"]
    assert (reference["setting"], other["setting"]) == ({"lr": 2e-3, "clipped": 0.5}, {"lr": 2e-3, "clipped": 0.2})
    guard = reference["methods"]["GRPOGuard"]
    assert guard["seeds"]["45"]["curves"]["average"] == [1.0, 1.1, 1.2, 1.15]
    assert guard["mean_gold"] == [pytest.approx(1.1125, abs=1e-3)] * 3  # 1.075 up to 0.8, then 1.15
    assert guard["gradient_max_over_min"] == {"velocity": 9.0, "parameters": 5.0}
    assert guard["seeds"]["44"]["scalars"]["drift/saturation_ratio"]["value"][-1] == 1.5
    frontier = reference["frontier"]
    assert set(frontier["axes"]) == {"proxy", "sqrt_kl", "step"}
    assert frontier["baseline"] == "FlowGRPO"
    best = {m["label"]: m["best"]["scores"]["average"]["value"] for m in frontier["methods"]}
    assert best == pytest.approx({**dict.fromkeys(METHODS, 1.2), "RatioNorm": 1.3})
    assert list(other["methods"]) == list(PAIR)


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_rectangular_and_has_every_method(document: results.Document, name: str):
    lines = tables.TABLES[name](document).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) > 3
    expected = {key: [p.__name__ for p in PRESETS] for key in ("ranges", "sweep")}
    expected |= {"cost": ["sweep", "total"], "conditions": list(PAIR)}
    assert [word for word in expected.get(name, METHODS) if word not in "\n".join(lines)] == []


def test_a_table_shows_the_numbers_of_the_document(document: results.Document):
    (row,) = [line for line in tables.settings(document).splitlines() if line.startswith("| 0.002, 50% | RatioNorm ")]
    assert row.split(" | ")[3:5] == ["1.169", "1.169, 1.169, 1.169"]
    assert row.split(" | ")[6].startswith("+0.100")
    (row,) = [line for line in tables.sweep(document).splitlines() if line.startswith("| RatioNorm | 0.001 |")]
    assert row == "| RatioNorm | 0.001 | 1.169 | 1.169 |"
    (row,) = [line for line in tables.drift(document).splitlines() if line.startswith("| GRPOGuard ")]
    assert row == "| GRPOGuard | 1.50 |"


def test_the_conditions_are_compared_with_the_configuration(document: results.Document):
    rows = [line.split(" | ")[:2] for line in tables.conditions(document).splitlines()[2:]]
    names = ["as configured", *SMALL.conditions]
    assert rows == [[f"| {name}", method] for name in names for method in PAIR]


def test_rendering_replaces_what_stands_between_the_markers(document: results.Document):
    text = "before\n<!-- table: digits sweep -->\noutdated\n<!-- end -->\nafter\n"
    once = page.render(text, {"digits": document})
    assert tables.sweep(document) in once
    assert "outdated" not in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert page.render(once, {"digits": document}) == once
    with pytest.raises(KeyError):
        page.render(text.replace("sweep", "nothing"), {"digits": document})


def test_the_figures_show_settings_and_the_penalty(tmp_path: Path, capsys):
    study = complete(SMALL, tmp_path / "runs", FakeTrainer(peak))
    drawn = {path.stem.removeprefix("evidence_digits_") for path in figures.draw(study, tmp_path)}
    assert drawn == {"frontier", "detail", "settings", "kl", "training", "ratio", "gradient"}


def test_the_legend_of_a_detail_names_what_is_shown(tmp_path: Path, capsys):
    drawn = figures._figures(complete(SMALL, tmp_path / "runs", FakeTrainer(peak)))
    frontier, detail = (
        [text.get_text() for text in drawn[name].legends[0].get_texts()] for name in ("frontier", "detail")
    )
    assert [name for name in frontier if name not in detail] == ["base"]


def test_the_pages_say_what_the_results_say():
    texts = [path.read_text(encoding="utf-8") for path in page.PAGES]
    found = page.published()
    assert {match["world"] for text in texts for match in page.MARKED.finditer(text)} == found.keys()
    assert [page.render(text, found) for text in texts] == texts
    for world, document in found.items():
        assert (page.RESULTS / f"{world}.json").read_text(encoding="utf-8") == results.dump(document)
