"""Every malformed input gets one line with the place, what was found and what would be right, and exit code 2."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from malformed import checkpoints, commands, configs, folders, prompts, scorers
from malformed.case import Case, World
from malformed.parsers import built_once
from runs import config, guardlit

CASES: list[Case] = [
    case for table in (configs, prompts, folders, checkpoints, scorers, commands) for case in table.CASES
]


@pytest.fixture(scope="module")
def parsers():
    with built_once():
        yield


@pytest.fixture
def world(parsers, case: Case, sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    if case.model:
        shutil.copytree(sd3_folder, folder / "model")
    else:
        (folder / "model").symlink_to(sd3_folder)
    config(Path(), Path("model"), trainer__max_epochs=1)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(folder)  # as `python -m guardlit` does: what an input names could be imported
    return World(folder, tmp_path / "executed")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_a_malformed_input_is_one_line(case: Case, world: World, capfd: pytest.CaptureFixture[str]):
    command = case.spoil(world)
    capfd.readouterr()
    before = set(sys.modules)
    assert guardlit(*command) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    said_of_options = "; dropped what was set for "  # a note, for rows that replace a class
    lines = [line for line in said.splitlines() if line.startswith("guardlit") and said_of_options not in line]
    assert len(lines) == 1, said
    for words in (case.place, case.found, case.right):
        assert words in lines[0]
    assert not world.marker.exists()
    assert not [name for name in set(sys.modules) - before if "evil" in name]


def test_the_tables_hold_what_they_claim():
    assert len(CASES) >= 400
    assert [what for what, count in Counter(case.what for case in CASES).items() if count > 1] == []
    assert all(case.place and case.found and case.right for case in CASES)
