"""`guardlit recipes`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from runs import guardlit

from guardlit.assets.recipes import names
from guardlit.recipes.evidence import evidence_of
from guardlit.recipes.recipe import PART, Recipe


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_list_has_all_but_the_parts(capsys):
    assert guardlit("recipes") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for name in names():
        assert (name in rows) == (Recipe((name,)).kind != PART), name
    digits = Recipe(("tiny_digits",))
    assert rows["tiny_digits"].split() == [
        *("tiny_digits", "digits", "DigitProbability", "GRPOGuard"),
        *evidence_of(digits).memory_text.split(),
        evidence_of(digits).level,
    ]


def test_one_recipe_says_what_it_is_made_of_and_what_proves_its_level(capsys):
    assert guardlit("recipes", "sd35_ocr_guard") == 0
    said = capsys.readouterr().out
    assert "parts/training.yaml, parts/sd35.yaml, parts/ocr.yaml, parts/guard.yaml, sd35_ocr_guard.yaml" in said
    assert "by tests/configs/test_configs.py::" in said


def test_a_copy_builds_on_nothing_and_keeps_the_sources(capsys):
    assert guardlit("recipes", "sd35_pickscore", "gpu/24gb", "--copy", "own/run.yaml") == 0
    assert capsys.readouterr().out == "own/run.yaml\n"
    text = Path("own/run.yaml").read_text()
    assert "#   guardlit fit --config own/run.yaml" in text
    assert "paper     GRPO-Guard, arXiv 2510.22319" in text  # of parts/training.yaml
    assert "clip_range: 4.0e-6 # guard: twice what OCR and GenEval have" in text
    assert "micro_batch: 4 # guardlit: 8 forward rows under guidance" in text
    assert not any(line.startswith("base:") for line in text.splitlines())
    assert yaml.safe_load(text)["trainer"]["default_root_dir"] == "runs/sd35_pickscore"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["sd35_pickscor"], "there is no recipe 'sd35_pickscor': did you mean sd35_pickscore?"),
        (["zzz"], "there is no recipe 'zzz': `guardlit recipes` lists them"),
        (["--copy", "x.yaml"], "--copy needs the name of a recipe: guardlit recipes NAME --copy run.yaml"),
        (["tiny_digits", "--copy", "there.yaml"], "--copy: there.yaml exists; choose another name or remove it"),
        (["tiny_digits", "--copy", "/dev/null/x/y"], "--copy: /dev/null/x/y cannot be written: Not a directory"),
        (["tiny_digits", "--cpy", "x.yaml"], "unknown option --cpy: did you mean --copy?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_nothing_is_lost(args: list[str], line: str, capsys):
    Path("there.yaml").write_text("mine")
    assert guardlit("recipes", *args) == 2
    assert capsys.readouterr().err.rstrip("\n") == f"guardlit recipes: error: {line}"
    assert Path("there.yaml").read_text() == "mine"
