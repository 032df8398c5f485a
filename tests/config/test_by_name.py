"""`--config NAME`: recipes by name, from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from runs import guardlit

from guardlit.assets.recipes import folder, names
from guardlit.config.bases import expand


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolved(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    assert guardlit("fit", *args, "--print_config") == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_every_configuration_of_the_repository_has_a_name():
    files = {path.relative_to(folder()).as_posix() for path in folder().rglob("*.yaml")}
    assert {f"{name}.yaml" for name in names()} == files
    assert {"sd35_pickscore", "tiny_digits", "gpu/24gb", "gold_paper", "parts/branching"} <= set(names())


@pytest.mark.parametrize("option", [["--config", "tiny_digits"], ["--config=tiny_digits"], ["-c", "tiny_digits"]])
def test_a_name_means_its_file(option: list[str], capsys):
    assert resolved(capsys, *option) == resolved(capsys, "--config", folder() / "tiny_digits.yaml")


def test_names_merge_as_files_do(capsys):
    merged = resolved(capsys, "--config", "sd35_pickscore", "--config", "gpu/24gb")
    assert merged["data"]["micro_batch"] == 4
    assert merged["data"]["prompts_per_round"] == 48


def test_a_path_wins_over_a_name(capsys):
    Path("tiny_digits").write_text("base: own.yaml\ntrainer: {max_epochs: 7}\n")
    Path("own.yaml").write_text("data: {train: own.txt}\n")
    own = resolved(capsys, "--config", "tiny_digits")
    assert (own["trainer"]["max_epochs"], own["data"]["train"]) == (7, "own.txt")


def test_a_name_reaches_outside_the_recipes_in_no_way():
    assert expand(["--config", "../configs/tiny_digits"]) == ["--config", "../configs/tiny_digits"]


def test_the_environment_names_a_recipe_whose_bases_are_followed(monkeypatch, capsys):
    monkeypatch.setenv("GUARDLIT_FIT__CONFIG", "sd35_ocr_guard")
    settings = resolved(capsys, "--data.train", "x.txt", "--data.micro_batch", "3")
    assert settings["model"]["reward"]["class_path"].endswith("OCR")  # of parts/ocr.yaml
    assert settings["model"]["policy"]["init_args"]["model"] == "stabilityai/stable-diffusion-3.5-medium"
    assert (settings["data"]["train"], settings["data"]["micro_batch"]) == ("x.txt", 3)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("sd35_pickscor", "; did you mean sd35_pickscore?"),
        ("configs/tiny_digits.yaml", "; did you mean tiny_digits?"),
        ("configs/gpu/24gb.yaml", "; did you mean gpu/24gb?"),
        ("24gb", "; did you mean gpu/24gb?"),
        ("tiny_digits.yaml", "; did you mean tiny_digits?"),
        ("zzz.yaml", "; `guardlit recipes` lists the names of those that come with guardlit"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_right_one(given: str, hint: str, capsys):
    assert guardlit("fit", "--config", given) == 2
    assert capsys.readouterr().err == f"guardlit fit: error: --config: no such file: {given}{hint}\n"


def test_a_file_of_ones_own_builds_on_a_recipe_and_a_file_next_to_it_comes_first(capsys):
    Path("own").mkdir()
    Path("own/run.yaml").write_text("base: [sd35_pickscore, gpu/24gb]\ntrainer: {max_epochs: 7}\n")
    own = resolved(capsys, "--config", "own/run.yaml")
    assert own == resolved(capsys, "--config", "sd35_pickscore", "--config", "gpu/24gb", "--trainer.max_epochs", 7)
    Path("own/run.yaml").write_text("base: tiny_digits\n")
    Path("own/tiny_digits").write_text("data: {train: own.txt}\n")
    assert resolved(capsys, "--config", "own/run.yaml")["data"]["train"] == "own.txt"


def test_a_folder_is_no_configuration_and_hides_no_recipe(capsys):
    Path("tiny_digits").mkdir()
    assert resolved(capsys, "--config", "tiny_digits")["trainer"]["max_epochs"] == 25


@pytest.mark.parametrize(
    "text",
    [
        "base : tiny_digits\ntrainer: {max_epochs: 7}\n",
        '{"base": "tiny_digits", "trainer": {"max_epochs": 7}}',
        "{base: tiny_digits, trainer: {max_epochs: 7}}\n",
        "'base': [tiny_digits]\ntrainer: {max_epochs: 7}\n",
    ],
)
def test_base_may_be_spelled_as_yaml_allows(text: str, capsys):
    Path("run.yaml").write_text(text)
    settings = resolved(capsys, "--config", "run.yaml")
    assert (settings["trainer"]["max_epochs"], settings["data"]["prompts_per_round"]) == (7, 10)
