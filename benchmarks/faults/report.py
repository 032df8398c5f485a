"""The campaign's output: a line for each event, two tables at the end, and JSON lines for scripts."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.faults.kills import History
from benchmarks.faults.scenario import Outcome

WIDEST = 160
"""Characters of a last line in the table; the JSON lines have all of it."""


def write(path: Path, kind: str, row: History | Outcome) -> None:
    """Append a line."""
    with path.open("a") as file:
        file.write(json.dumps({"kind": kind, **asdict(row)}) + "\n")


def kills_table(histories: Sequence[History]) -> str:
    """By setting: what was killed, and how the runs ended."""
    head = ("setting", "runs", "kills", "while loading", "a checkpoint half written", "of one process of two")
    head += ("gone after, longest", "ended bit for bit as undisturbed", "log lines lost")
    rows = []
    for setting in dict.fromkeys(h.setting for h in histories):
        mine = [h for h in histories if h.setting == setting]
        kills = [k for h in mine for k in h.kills]
        several = not setting.startswith("1-")
        cells = (setting, len(mine), len(kills), sum(k.loading for k in kills), sum(k.writing for k in kills))
        alone = sum(k.victim != "all" for k in kills) if several else "-"
        gone = f"{max((k.gone for k in kills), default=0):.1f} s"
        rows.append(
            (*cells, alone, gone, f"{sum(h.equal for h in mine)} of {len(mine)}", sum(h.unlogged for h in mine))
        )
    kills = [k for h in histories for k in h.kills]
    total = ("all", len(histories), len(kills), sum(k.loading for k in kills), sum(k.writing for k in kills), "", "")
    rows.append((*total, *_ends(histories)))
    return _table(head, rows)


def _ends(histories: Sequence[History]) -> tuple[str, int]:
    return f"{sum(h.equal for h in histories)} of {len(histories)}", sum(h.unlogged for h in histories)


def faults_table(outcomes: Sequence[Outcome]) -> str:
    """A row a fault."""
    head = ("fault", "exit", "its last line", "kept", "resumed", "final state", "as promised")
    rows = [
        (o.fault, o.exit, f"`{_short(o.said)}`", o.kept, o.resumed, o.equal, "yes" if o.held else _short(o.broken[0]))
        for o in outcomes
    ]
    return _table(head, rows)


def machine() -> str:
    """Where this ran."""
    import lightning
    import torch

    cores = len([line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")])
    versions = f"torch {torch.__version__}, lightning {lightning.__version__}, Python {platform.python_version()}"
    return f"{cores} CPU cores, no GPU, {platform.system()} {platform.release()}; {versions}"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _short(text: str) -> str:
    """Without the folders of this campaign, and short enough for the table."""
    words = text.replace("`", "'").split()
    text = " ".join(
        word if "/" not in word or word[0].isdigit() else ".../" + word.rsplit("/", 1)[-1] for word in words
    )
    return text if len(text) <= WIDEST else text[: WIDEST - 4] + " ..."
