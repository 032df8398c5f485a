"""docs/evidence.md and a page for each world and for the second study.

Their tables stand between markers and come from the documents in docs/evidence alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.evidence.objectives import tables as objectives
from benchmarks.evidence.objectives.methods import PLAN
from benchmarks.evidence.tables import TABLES
from benchmarks.evidence.worlds import ROOT

PAGES = sorted(ROOT.glob("docs/evidence*.md"))
RESULTS = ROOT / "docs/evidence"
"""A document of results for each world and for the second study, by name."""
MARKED = re.compile(r"(<!-- table: (?P<world>\w+) (?P<name>\w+) -->\n)(?P<content>.*?)(<!-- end -->)", re.DOTALL)


def published() -> dict[str, Any]:
    """The documents of results by world."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def render_all() -> None:
    """Make the tables of all pages again."""
    for path in PAGES:
        path.write_text(render(path.read_text(encoding="utf-8"), published()), encoding="utf-8")


def render(page: str, results: Mapping[str, Any]) -> str:
    """A page with every marked table made again; raises `KeyError` for an unknown world or table."""

    def replace(match: re.Match[str]) -> str:
        tables = objectives.TABLES if match["world"] == PLAN.name else TABLES
        content = tables[match["name"]](results[match["world"]])
        return f"{match[1]}\n{content}\n\n{match[5]}"

    return MARKED.sub(replace, page)
