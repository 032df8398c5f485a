"""A headless browser, where one is installed, and short runs to look at."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from runs import config, guardlit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

CALLBACKS = [
    {"class_path": "guardlit_callbacks.RatioDistribution", "init_args": {"raw": "raw_log_ratio"}},
    {"class_path": "guardlit_callbacks.GradientNorm"},
    {"class_path": "guardlit_callbacks.GoldScore", "init_args": {"scorers": ["brightness.Brightness"]}},
    {"class_path": "guardlit_callbacks.SampleGrid", "init_args": {"size": 32}},
    {"class_path": "guardlit_callbacks.DriftSentinels"},
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium or Chrome of this machine; Playwright downloads none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def runs(browser: Browser, sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs: `version_0`, `version_1` with another objective and seed, and `version_2`, the first one resumed."""
    folder = tmp_path_factory.mktemp("seen")
    changes = {"trainer__callbacks": CALLBACKS, "trainer__check_val_every_n_epoch": 1, "data__inner_epochs": 1}
    path = config(folder, sd3_folder, trainer__max_epochs=2, **changes)
    other = ("--model.objective", "FlowGRPO", "--model.objective.clip_range", "auto", "--seed_everything", "43")
    resumed = ("--ckpt_path", folder / "runs/version_0/checkpoints/round_00002.ckpt", "--trainer.max_epochs", "3")
    for options in ((), other, resumed):
        assert guardlit("fit", "--config", path, *options) == 0
    return folder / "runs"
