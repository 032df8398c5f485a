"""docs/evidence.md and a page for each world.

Their tables stand between markers and come from docs/evidence/results.json alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.evidence.tables import TABLES
from benchmarks.evidence.worlds import ROOT

PAGES = sorted(ROOT.glob("docs/evidence*.md"))
RESULTS = ROOT / "docs/evidence/results.json"
MARKED = re.compile(r"(<!-- table: (?P<world>\w+) (?P<name>\w+) -->\n)(?P<content>.*?)(<!-- end -->)", re.DOTALL)


def render(page: str, results: Mapping[str, Any]) -> str:
    """A page with every marked table made again; raises `KeyError` for an unknown world or table."""

    def replace(match: re.Match[str]) -> str:
        content = TABLES[match["name"]](results[match["world"]])
        return f"{match[1]}\n{content}\n\n{match[5]}"

    return MARKED.sub(replace, page)
