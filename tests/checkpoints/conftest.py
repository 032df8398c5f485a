"""One run whose checkpoints several tests read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import config, guardlit


@pytest.fixture(scope="session")
def run(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A run of three rounds with the checkpoints it keeps by default: its YAML and they, oldest first."""
    folder = tmp_path_factory.mktemp("run")
    path = config(folder, sd3_folder)
    assert guardlit("fit", "--config", path) == 0
    return path, sorted((folder / "runs/version_0/checkpoints").iterdir())


@pytest.fixture
def runs(run: tuple[Path, list[Path]], tmp_path: Path) -> Path:
    """A copy of the run's folder that may be changed."""
    return shutil.copytree(run[0].parent / "runs", tmp_path / "runs")
