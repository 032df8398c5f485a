"""A notebook as Markdown: its texts, its code and the output that is stored in it. Nothing is executed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from site_builder.project import ROOT


def notebook(name: str) -> str:
    """The cells of a notebook, without its title: the page has one.

    Args:
        name: path of the file below the repository's root.
    """
    cells = json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(part for cell in cells for part in _cell(cell))
    return re.sub(r"\A# .*\n+", "", text)


def _cell(cell: Mapping[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        yield from _output(output)


def _output(output: Mapping[str, Any]) -> Iterator[str]:
    data = output.get("data", {})
    if "image/png" in data:
        yield f"![Output of the cell](data:image/png;base64,{''.join(data['image/png'].split())})"
    elif text := "".join(output.get("text", data.get("text/plain", ""))):
        yield f"```text\n{text.rstrip()}\n```"
