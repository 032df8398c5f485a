"""Code in a page is the code that runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from families import FAMILIES

ROOT = Path(__file__).parents[2]


def code(text: str) -> list[str]:
    """Lines that are not blank."""
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_the_walkthrough_is_the_complete_shortest_policy():
    page = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    modules = {family.policy.__module__.rpartition(".")[2] for family in FAMILIES.values()}
    files = [code((ROOT / f"guardlit/policies/{name}.py").read_text(encoding="utf-8")) for name in modules]
    assert len(files) == len(FAMILIES)
    assert code("\n".join(blocks)) == min(files, key=len)


def test_the_page_names_every_policy():
    page = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
    for family in FAMILIES.values():
        assert f"| `{family.policy.__name__}` | `{family.policy.pipeline_class}` |" in page


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/**/*.md")), ids=lambda page: page.stem)
def test_a_page_opens_with_its_purpose(page: Path):
    """A title, then a paragraph: no table, list, code or heading."""
    title, opening, *_ = page.read_text(encoding="utf-8").split("\n\n")
    assert re.fullmatch(r"# .+", title)
    assert re.match(r"[A-Za-z`*]", opening)
    assert re.search(r"[.:]$", opening)
    assert not opening.startswith("```")
