"""`base:` at the top of a configuration file."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import guardlit

from guardlit.config.bases import expand
from guardlit.errors import GuardlitError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """run.yaml builds on parts/model.yaml and parts/guard.yaml; the first of those on parts/deep.yaml."""
    (tmp_path / "parts").mkdir()
    files = {
        "parts/deep.yaml": "trainer: {max_epochs: 7, log_every_n_steps: 3}\ndata: {train: deep.txt, micro_batch: 2}\n",
        "parts/model.yaml": "base: deep.yaml\nmodel: {reward: JPEGCompressibility}\ntrainer: {max_epochs: 8}\n",
        "parts/guard.yaml": "model:\n  objective: {class_path: GRPOGuard, init_args: {clip_range: 2.0e-6}}\n",
        "run.yaml": (
            "base: [parts/model.yaml, parts/guard.yaml]\n"
            "model:\n  policy: {class_path: SD3Policy, init_args: {model: guardlit://digits}}\n"
            "data: {train: run.txt}\n"
        ),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_bases_stand_in_front_of_what_builds_on_them(tree: Path):
    run, parts = tree / "run.yaml", tree / "parts"
    expected = [parts / "deep.yaml", parts / "model.yaml", parts / "guard.yaml", run]
    for args in (["fit", "--config", str(run), "--x", "1"], ["fit", f"--config={run}", "--x", "1"]):
        given = expand(args)
        assert given == ["fit", *(a for file in expected for a in ("--config", str(file))), "--x", "1"]
    assert expand(["fit", "--config"]) == ["fit", "--config"]
    assert expand(["fit", "--config", "nowhere.yaml"]) == ["fit", "--config", "nowhere.yaml"]


def test_later_values_win_and_the_resolved_settings_name_no_base(tree: Path):
    from guardlit.commands.lightning_cli import settings_of

    settings = settings_of(["fit", "--config", str(tree / "run.yaml"), "--trainer.log_every_n_steps", "4"])
    trainer, data = settings["trainer"], settings["data"]
    assert (trainer["max_epochs"], trainer["log_every_n_steps"]) == (8, 4)
    assert (data["train"], data["micro_batch"]) == ("run.txt", 2)
    objective = settings["model"]["objective"]
    assert objective["class_path"].endswith("GRPOGuard")
    assert objective["init_args"]["clip_range"] == 2e-6


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("run.yaml", "data: {train: x}\nbase: [parts/none.yaml]\n", "run.yaml:2: base: there is no file"),
        ("parts/deep.yaml", "base: ../run.yaml\n", "parts/deep.yaml:1: base: "),
        ("run.yaml", "base: run.yaml\n", "builds on itself"),
        ("run.yaml", "base: {a: b}\n", "run.yaml:1: base: expected a file or a list of files"),
        ("run.yaml", "base: [1]\n", "run.yaml:1: base: expected a file or a list of files"),
    ],
)
def test_a_base_that_cannot_be_is_one_line(tree: Path, capfd, file: str, text: str, said: str):
    (tree / file).write_text(text)
    with pytest.raises(GuardlitError) as error:
        expand(["fit", "--config", str(tree / "run.yaml")])
    assert said in str(error.value)
    assert guardlit("fit", "--config", tree / "run.yaml") == 2
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_mistake_in_a_base_names_its_own_line(tree: Path, capfd):
    (tree / "parts/guard.yaml").write_text("model:\n  objective: {class_path: GRPOGuard, init_args: {clip_rnge: 1}}\n")
    assert guardlit("fit", "--config", tree / "run.yaml") == 2
    said = capfd.readouterr().err
    assert "parts/guard.yaml:2: model.objective" in said
    assert "clip_range" in said


def test_base_is_no_option(tree: Path, capfd):
    assert guardlit("fit", "--config", tree / "run.yaml", "--base", "x.yaml") == 2
    assert "--base belongs at the top of a configuration file" in capfd.readouterr().err


def test_the_configuration_that_a_run_keeps_builds_on_nothing(tree: Path):
    (tree / "kept.yaml").write_text("data: {train: x}\nbase: null\n")
    assert expand(["fit", "--config", str(tree / "kept.yaml")]) == ["fit", "--config", str(tree / "kept.yaml")]
