"""TensorBoard in a browser: the charts of its tab Custom Scalars, and the settings in its tab HParams."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guardlit.commands.report import SUMMARY
from guardlit.training.logs.dashboard import LAYOUT
from guardlit.training.logs.settings import FIRST, METRICS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

RUNS = ("version_0", "version_1", "version_2")

PATIENCE = 30_000
"""Milliseconds until an element that does not appear counts as missing; it takes seconds."""


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    """Of a TensorBoard that shows the runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", runs, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([*map(str, command), "--load_fast", "false"], stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        said = next((line for line in server.stderr if "http://" in line), "nothing")
        assert str(port) in said
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window of a desktop; the test fails if the page raises."""
    window = browser.new_page(viewport={"width": 1280, "height": 900})
    window.set_default_timeout(PATIENCE)
    raised: list[str] = []
    window.on("pageerror", lambda error: raised.append(str(error)))
    yield window
    window.close()
    assert raised == []


def test_the_custom_scalars_are_charts_of_all_runs(page: Page, address: str):
    page.goto(f"{address}#custom_scalars")
    board = page.locator("tf-custom-scalar-dashboard")
    for category, charts in LAYOUT.items():
        board.locator(".category-name").get_by_text(category, exact=True).wait_for()
        for title in charts:
            board.locator("tf-card-heading").get_by_text(title, exact=True).wait_for()
    for run in RUNS:
        board.locator("tf-multi-checkbox").get_by_text(run, exact=True).wait_for()
    proxy = board.locator("tf-custom-scalar-multi-line-chart-card", has_text="proxy reward")
    proxy.locator("vz-line-chart2 svg path").first.wait_for(state="attached")
    proxy.get_by_text("Matches (6)", exact=True).wait_for()  # of three runs, the reward in training and in validation
    assert board.locator("tf-custom-scalar-margin-chart-card").count() == 1


def test_the_hparams_are_a_row_a_run(page: Page, address: str):
    page.goto(f"{address}#hparams")
    cells = page.locator("tf-hparams-table-view .table-cell")
    cells.get_by_text("version_2", exact=True).wait_for()
    texts = [text.strip() for text in cells.all_inner_texts()]
    assert {*FIRST, *METRICS, *RUNS} <= set(texts)
    assert [texts.count(text) for text in ("GRPOGuard", "FlowGRPO", "0.0001", "auto")] == [2, 1, 2, 1]
    others = page.locator("tf-hparams-query-pane .hparam-checkbox").all_inner_texts()
    assert {text.strip() for text in others} == set(SUMMARY)
    scores = [float(text) for text in texts if text.replace(".", "", 1).lstrip("-").isdigit()]
    assert len(scores) == 3 * 4 + 2  # learning rate, seed, proxy and gold of each, and two clip ranges
