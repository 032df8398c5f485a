"""The page of `guardlit report` in a browser, on a desktop and on a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from runs import guardlit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module", params=["one run", "two runs"])
def report(request: pytest.FixtureRequest, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run, and that of two methods."""
    out = tmp_path_factory.mktemp("report")
    given = [runs / "version_0", runs / "version_1"][: 1 if request.param == "one run" else 2]
    assert guardlit("report", *given, "--out", out) == 0
    return out / "index.html"


@pytest.fixture(params=WIDTHS)
def page(request: pytest.FixtureRequest, browser: Browser, report: Path) -> Page:
    """The report in a window; the test fails if the browser complains."""
    width, height = WIDTHS[request.param]
    window = browser.new_page(viewport={"width": width, "height": height})
    complaints: list[str] = []
    window.on("console", lambda message: complaints.append(message.text))
    window.on("pageerror", lambda error: complaints.append(str(error)))
    window.goto(report.as_uri())
    yield window
    window.close()
    assert complaints == []


def test_all_is_loaded_and_nothing_is_wider_than_the_window(page: Page):
    assert page.locator("h1").inner_text().startswith("Training report")
    images = page.evaluate("[...document.images].map(image => [image.complete, image.naturalWidth, image.width])")
    assert len(images) > 3
    narrow = page.viewport_size["width"] < 640
    for complete, natural, shown in images:
        assert complete
        assert natural > 100
        assert shown >= min(natural, 700) or not narrow  # shrunk to a phone, a figure's text is unreadable
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_cell_can_be_read(page: Page):
    """None is cut off, as large as the rest, and on a phone next to its name."""
    cells = page.locator("td:visible")
    assert cells.count() > 20
    look: Callable[[str], list] = page.evaluate
    cut = look("[...document.querySelectorAll('td')].filter(c => c.offsetParent && c.scrollWidth > c.clientWidth + 1)")
    assert len(cut) == 0
    sizes = look("[...document.querySelectorAll('td')].map(c => parseFloat(getComputedStyle(c).fontSize))")
    assert min(sizes) >= 12
    if page.viewport_size["width"] < 640:
        names = look("[...document.querySelectorAll('td')].map(c => getComputedStyle(c, '::before').content)")
        assert all(name not in ("none", '""') for name in names)
        right = look("Math.max(...[...document.querySelectorAll('td')].map(c => c.getBoundingClientRect().right))")
        assert right <= page.viewport_size["width"]
    else:
        assert page.locator("thead:visible").count() > 2
