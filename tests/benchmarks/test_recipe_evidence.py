"""What counts as evidence of a recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import recipe_evidence
from benchmarks.recipe_evidence import record_run
from guardlit.commands.lightning_cli import settings_of
from guardlit.config.saved import SECTIONS

AVERAGE = "model,weights,updates,metric,value,low,high\na,ema,480,average,{value},{low},{high}\n"


def run_folder(folder: Path, name: str, rounds: int, **changes: object) -> Path:
    """The files of a run with a recipe's settings that `record_run` reads, as `guardlit fit` writes them."""
    folder.mkdir()
    prompts = ["--data.train", "guardlit://prompts/everyday.txt"] if "ocr" in name else []
    settings = settings_of(["fit", "--config", name, *prompts])
    for key, value in changes.items():
        place = settings
        *parents, last = key.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    saved = {section: settings[section] for section in SECTIONS}  # without the command's own options
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    facts = {"command": ["guardlit", "fit", "--config", name], "versions": {"torch": "2.14.1"}}
    (folder / "run.json").write_text(json.dumps(facts))
    ended = "".join(f"{k},{k},{k + 1}.0\n" for k in range(rounds))
    (folder / "metrics.csv").write_text(f"epoch,step,round\n{ended}{rounds},{rounds},\n")  # and one that has begun
    (folder / "gold.csv").write_text("step,average\n0,1.0\n9,1.284\n")
    return folder


def recorded(name: str, *run: object) -> dict:
    records: dict = {name: {"proofs": {}}}
    record_run(records, name, *map(str, run))
    return records[name]["proofs"]


def test_a_complete_run_has_trained(tmp_path: Path):
    other = {"seed_everything": 7, "data__seed": 7, "data__micro_batch": 20, "trainer__default_root_dir": "x"}
    proof = recorded("tiny_digits", run_folder(tmp_path / "run", "tiny_digits", 25, **other))["trained"]
    assert (proof["rounds"], proof["seed"], proof["gold"], proof["on"]) == (25, 7, [1.0, 1.284], "cpu, torch 2.14.1")
    assert proof["by"] == "guardlit fit --config tiny_digits"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trainer__max_epochs": 3}, "trainer.max_epochs"),
        ({"model__policy__init_args__model": "mine"}, "model.policy.init_args.model"),
        ({"model__objective__init_args__clip_range": 1.0}, "model.objective.init_args.clip_range"),
        ({"model__kl": {"weight": 0.04}}, "model.kl, model.kl.weight"),
        ({"trainer__precision": "bf16-mixed"}, "trainer.precision"),
        ({"trainer__callbacks": []}, "trainer.callbacks"),
    ],
)
def test_other_settings_are_no_evidence(change: dict, said: str, tmp_path: Path):
    with pytest.raises(SystemExit, match=f"is no run of tiny_digits: other {said}"):
        recorded("tiny_digits", run_folder(tmp_path / "run", "tiny_digits", 25, **change))


def test_a_part_of_a_run_shows_nothing_on_a_cpu_and_the_architecture_on_a_gpu(tmp_path: Path):
    with pytest.raises(SystemExit, match="shows nothing new: 24 rounds on cpu"):
        recorded("tiny_digits", run_folder(tmp_path / "cpu", "tiny_digits", 24))
    on_gpu = run_folder(tmp_path / "gpu", "tiny_digits", 24, trainer__accelerator="gpu")
    assert recorded("tiny_digits", on_gpu).keys() == {"gpu"}


@pytest.mark.parametrize(("low", "high", "level"), [(0.97, 1.01, True), (0.90, 0.98, False)])
def test_the_papers_average_must_lie_in_the_interval(low: float, high: float, level: bool, tmp_path: Path):
    run = run_folder(tmp_path / "run", "sd35_ocr_guard", 240, trainer__accelerator="gpu")
    (tmp_path / "table.csv").write_text(AVERAGE.format(value=(low + high) / 2, low=low, high=high))
    assert ("reproduced" in recorded("sd35_ocr_guard", run, tmp_path)) == level  # the paper's is 0.99


def test_a_machines_own_words_stay_out_of_the_record(tmp_path: Path):
    assert str(tmp_path) not in json.dumps(recorded("tiny_digits", run_folder(tmp_path / "run", "tiny_digits", 25)))


def test_every_row_of_table_1_has_an_average():
    assert dict(recipe_evidence._table_1())["sd35_pickscore_guard"] == 1.20
