"""The results as JSON and as a Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage import Stage

Rows = Sequence[Mapping[str, Any]]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a stage so far, without a line that the end of the process cut off."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def filled(stage: Stage, rows: Rows, why: str, device: str, version: str) -> list[dict[str, Any]]:
    """A stage's rows, and one for each missing row, with the reason.

    Args:
        stage: with its expected names; a row counts if its name begins with one.
        rows: that it wrote.
        why: the other rows are missing: how the stage ended.
        device: for rows of a stage that never began.
        version: of torch, likewise.
    """
    written = [str(row["name"]) for row in rows]
    missing = [
        name for name in stage.rows if not any(found.startswith(name) or name.startswith(found) for found in written)
    ]
    empty = {"stage": stage.name, "value": None, "unit": "", "device": device, "torch": version}
    return [dict(row) for row in rows] + [{**empty, "name": name, "note": f"not measured: {why}"} for name in missing]


def markdown(rows: Rows, head: Mapping[str, Any]) -> str:
    """A heading with the common facts, and one line a row."""
    title = "Rehearsal: tiny sizes on the CPU; the numbers mean nothing" if head["rehearsal"] else "Results"
    lines = [f"## {title}", "", f"{head['machine']}; {head['date']}; {head['seconds']:.0f} s", ""]
    lines += ["| stage | what | value | unit | device | torch | note |", "|---|---|--:|---|---|---|---|"]
    for row in rows:
        value = "not measured" if row["value"] is None else f"{row['value']:.4g}"
        note = str(row["note"]).removeprefix("not measured: ").replace("|", "\\|").replace("\n", " ")
        cells = row["stage"], row["name"], value, row["unit"], row["device"], row["torch"], note
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def write(folder: Path, rows: Rows, head: Mapping[str, Any]) -> None:
    """`results.json` and `results.md` in a folder, each written atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"results.json": json.dumps({**head, "rows": list(rows)}, indent=1), "results.md": markdown(rows, head)}
    for name, text in texts.items():
        new = folder / f".{name}"
        new.write_text(text, encoding="utf-8")
        new.replace(folder / name)
