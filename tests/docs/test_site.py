"""The documentation site builds without a warning, works without a network, and leaves nothing out."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import guardlit_callbacks
import pytest
from runs import guardlit as run_guardlit

import guardlit
from guardlit.commands import COMMANDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SECTIONS = ("model", "data", "trainer")
STRICT = ("-W", "--keep-going", "-q", "-b", "html")
"""Warnings are errors: a broken link, a page that is in no list, a docstring that cannot be read."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as it is published, and once where several processes run these tests."""
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = tmp_path_factory.getbasetemp().parent / "site"
        folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            build(folder)
            (folder / "built").touch()
    return folder / "html"


def build(folder: Path) -> None:
    """The site in `html` below a folder; fails with what Sphinx warns about."""
    command = [sys.executable, "-m", "sphinx", *STRICT, "-d", folder / "doctrees", DOCS, folder / "html"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "callbacks")])}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


class Page(HTMLParser):
    """What a page of the site links to, loads and defines."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in {"script", "img", "link", "iframe", "source"}:
            self.loads += [given[name] for name in ("src", "href", "srcset") if name in given]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def sources() -> list[str]:
    """Pages below docs/, without the suffix, as they should stand on the site."""
    names = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")]
    return sorted({*names} - {"README"})


def test_every_page_can_be_reached_from_the_front_page(pages: dict[str, Page]):
    tree = [unquote(link.partition("#")[0]) for link in pages["index.html"].links]
    assert {f"{name}.html" for name in sources()} - {"index.html"} <= {*tree}


def test_every_page_of_the_index_for_the_repository_is_in_the_navigation(site: Path):
    """docs/README.md is the one list: a page that is added there is added here."""
    front = (site / "index.html").read_text(encoding="utf-8")
    (sidebar,) = re.findall(r'<div class="sidebar-tree">(.*?)</div>', front, re.DOTALL)
    linked = re.findall(r"^- \[[^\]]+\]\((?:\./)?([\w/]+)\.md\)", (DOCS / "README.md").read_text(), re.MULTILINE)
    assert len(linked) >= 30
    assert [name for name in linked if f'href="{name}.html"' not in sidebar] == []


def test_no_page_loads_anything_from_elsewhere(site: Path, pages: dict[str, Page]):
    assert [(name, u) for name, page in pages.items() for u in page.loads if urlsplit(u).netloc] == []
    styles = {path.name: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    assert styles
    assert [n for n, text in styles.items() if re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", text)] == []


def test_every_link_within_the_site_leads_somewhere(site: Path, pages: dict[str, Page]):
    """Sphinx checks Markdown's links; this one also checks what a theme or raw HTML adds."""
    broken = []
    for name, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = os.path.normpath(Path(name).parent / unquote(parts.path)) if parts.path else name
            exists = (site / target).is_file()
            if not exists or (parts.fragment and target in pages and parts.fragment not in pages[target].anchors):
                broken.append(f"{name}: {link}")
    assert sorted(set(broken)) == []


def test_every_link_has_a_text(site: Path):
    empty = re.compile(r"<a [^>]*\bhref=[^>]*>\s*(?:<span[^>]*>\s*</span>)?\s*</a>")
    found = {path.name: empty.findall(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert {name: links for name, links in found.items() if links} == {}


def test_links_to_files_of_the_repository_lead_to_files(pages: dict[str, Page]):
    base = f"{repository()}/"
    links = {link for page in pages.values() for link in page.links if link.startswith(base)}
    paths = {re.sub(r"^(?:blob|tree)/main/", "", link.removeprefix(base)) for link in links} - {""}
    assert len(paths) >= 10
    assert [path for path in sorted(paths) if not (ROOT / path.partition("#")[0]).exists()] == []


def repository() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r'^Repository = "(.+)"$', text, re.MULTILINE)[0]


@pytest.mark.parametrize("package", [guardlit, guardlit_callbacks], ids=lambda package: package.__name__)
def test_every_public_name_is_documented(pages: dict[str, Page], package):
    page = pages["reference/python.html" if package is guardlit else "reference/callbacks.html"]
    assert {f"{package.__name__}.{name}" for name in package.__all__} <= page.anchors


def test_every_command_is_documented_with_its_options(pages: dict[str, Page], capsys: pytest.CaptureFixture[str]):
    anchors = pages["reference/commands.html"].anchors
    assert {*COMMANDS} <= anchors
    lacking = []
    for name in COMMANDS:
        assert run_guardlit(name, "--help") == 0
        own = capsys.readouterr().out.partition("\noptions of all these commands:")[0]
        options = {*re.findall(r"^  (?:-\w [A-Z]+, )?--([\w.-]+)", own, re.MULTILINE)} - {"help"}
        assert options or name == "convert"
        lacking += [f"{name} --{o}" for o in options if f"cmdoption-guardlit-{name}-{o}" not in anchors]
    assert lacking == []


def test_every_key_is_documented(pages: dict[str, Page]):
    from guardlit.commands.first_look import command

    page = pages["reference/keys.html"]
    keys = [option.key for name in SECTIONS for option in command("fit").section(name)]
    assert len(keys) > 70
    expected = [f"confval-{key}" for key in [*keys, "seed_everything", "ckpt_path"]]
    assert [key for key in expected if key not in page.anchors] == []
    for parameter in ("SD3Policy.text_encoder_3", "GRPOGuard.clip_range", "LoRA.rank", "GoldScore.scorers"):
        assert f"confval-{parameter}" in page.anchors


def test_the_search_finds_a_key(site: Path):
    """The index is a script, which a browser reads from a folder as well."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\)", text.strip(), re.DOTALL)[1])
    assert "over_optimization" in index["docnames"]
    assert any("micro_batch" in name for names in index["objects"].values() for *_, name in names)


def test_pages_are_published_as_they_are_tested():
    workflow = (ROOT / ".github/workflows/pages.yml").read_text(encoding="utf-8")
    assert f"sphinx-build {' '.join(STRICT)} docs site" in workflow
