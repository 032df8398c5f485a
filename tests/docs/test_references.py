"""What documentation, configurations and code name exists: files, links, dotted names."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("callbacks/*.md"), *ROOT.glob("benchmarks/**/*.md")]
CONFIGS = [*ROOT.glob("configs/**/*.yaml")]
CODE = [path for room in ("guardlit", "callbacks", "tests", "benchmarks") for path in (ROOT / room).rglob("*.py")]
CURRENT = [path for path in PAGES if path.name != "CHANGELOG.md"]  # its older entries name what was there then

FILE = re.compile(
    r"(?<![\w/.-])(?:guardlit|callbacks|tests|benchmarks|configs|docs|notebooks)/[\w./-]*"
    r"\.(?:py|md|yaml|json|ipynb|png)\b"
)
DOTTED = re.compile(r"(?<![\w/.-])(?:guardlit(?:_callbacks)?|benchmarks)(?:\.[A-Za-z_]\w*)+")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)?(?:#([\w-]+))?\)")


def cases(paths: list[Path], pattern: re.Pattern[str]) -> list[pytest.param]:
    """One case a name that stands in some file, with the first file that has it."""
    first: dict[str, str] = {}
    for path in sorted(paths):
        for match in pattern.finditer(path.read_text(encoding="utf-8")):
            first.setdefault(match[0], path.relative_to(ROOT).as_posix())
    return [pytest.param(name, id=f"{page}: {name}") for name, page in first.items()]


@pytest.mark.parametrize("name", cases(CURRENT + CONFIGS + CODE, FILE))
def test_a_file_exists(name: str):
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("name", cases(CURRENT + CONFIGS, DOTTED))
def test_a_dotted_name_exists(name: str):
    assert pydoc.locate(name) is not None


def links() -> Iterator[pytest.param]:
    for page in PAGES:
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            yield pytest.param(page, match[1], match[2], id=f"{page.relative_to(ROOT)}: {match[0]}")


@pytest.mark.parametrize(("page", "file", "heading"), list(links()))
def test_a_link_leads_somewhere(page: Path, file: str | None, heading: str | None):
    target = page.parent / file if file else page
    assert target.exists()
    if heading:
        titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def rooms() -> set[str]:
    """Folders and public modules of guardlit, as `name/` and `name.py`."""
    folders = {f"{path.parent.name}/" for path in (ROOT / "guardlit").glob("*/__init__.py")}
    return folders | {path.name for path in (ROOT / "guardlit").glob("[!_]*.py")}


def test_the_readme_names_the_real_rooms():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```\n(guardlit/\n.*?)^```", text, re.DOTALL | re.MULTILINE)
    columns = [line.strip().partition("   ")[0] for line in block.splitlines() if line.startswith("  ")]
    assert set(re.findall(r"[\w.-]+(?:/|\.py)", " ".join(columns))) == rooms()


def test_contributing_names_the_real_rooms():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    columns = re.findall(r"^\| \d+ \|([^|]+)\|", text, re.MULTILINE)
    assert set(re.findall(r"`([\w.]+(?:/|\.py))`", " ".join(columns))) == rooms()


@pytest.mark.parametrize("name", ["guardlit.sde.FlowSDE", "guardlit.cli", "guardlit_callbacks.TrainableEMA"])
def test_a_name_that_exists_resolves(name: str):
    assert pydoc.locate(name) is not None


@pytest.mark.parametrize("name", ["guardlit.together", "guardlit.sde.FlowSDF", "guardlit.nowhere.at.all"])
def test_a_name_that_does_not_exist_fails(name: str):
    assert pydoc.locate(name) is None
