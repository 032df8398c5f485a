"""The few pieces of HTML that a report is made of; everything that is not HTML already is escaped here."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

import numpy as np

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1a1a1a; background: #fff;
       max-width: 1000px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.6em; margin: 0 0 .2em; }
h2 { font-size: 1.2em; margin: 2.2em 0 .6em; padding-top: .7em; border-top: 1px solid #ccc; break-after: avoid; }
p { max-width: 46em; }
figure { margin: 1em 0; break-inside: avoid; }
figure img { display: block; max-width: max(100%, 640px); height: auto; }
figcaption, .note { color: #444; font-size: .9em; max-width: 52em; }
.scroll { overflow-x: auto; margin: .8em 0 1.2em; }
figure .scroll { margin: 0; }
table { border-collapse: collapse; font-size: .88em; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .3em 0; }
th, td { padding: .22em .9em .22em 0; text-align: right; vertical-align: top; white-space: nowrap; }
th { border-bottom: 1px solid #1a1a1a; vertical-align: bottom; font-weight: 600; }
th { white-space: normal; }
th.text, td.text { text-align: left; }
.wrap th.text, .wrap td.text { white-space: normal; }
tbody + tbody td { border-top: 0; }
tbody tr:first-child td { border-top: 1px solid #ccc; }
tr { break-inside: avoid; }
thead { display: table-header-group; }
summary { cursor: pointer; }
pre { background: #f6f6f6; padding: .8em; overflow-x: auto; font-size: .8em; line-height: 1.35; }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt; }
  pre { white-space: pre-wrap; }
  .scroll { overflow: visible; }
  figure img { max-width: 100%; }
}
@page { margin: 16mm; }
"""

Rows = Sequence[Sequence[str]]

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def page(title: str, sections: Sequence[str]) -> str:
    """A whole document of sections that are HTML already; it needs nothing from anywhere else."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *sections,
            "</body></html>\n",
        ]
    )


def section(title: str, *parts: str) -> str:
    """A heading and parts that are HTML already."""
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str, css: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def picture(data: bytes, kind: str, alt: str, caption: str) -> str:
    """A picture within the page, `kind` being "svg+xml" or "png", with a plain-text caption."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" alt="{escape(alt)}">'
    return f'<figure><div class="scroll">{image}</div><figcaption>{escape(caption)}</figcaption></figure>'


def table(header: Sequence[str], *groups: Rows, text: int = 1, caption: str = "", wrap: bool = False) -> str:
    """A table: numbers to the right, the first `text` columns to the left; a line above each group of rows.

    `wrap` breaks long lines at spaces, and names and paths at their separators.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        style = [' class="text"' if i < text else "" for i in range(len(cells))]
        texts = [re.sub(r"([/._])", r"\1<wbr>", escape(c)) if wrap else escape(c) for c in cells]
        return "<tr>" + "".join(f"<{tag}{s}>{t}</{tag}>" for s, t in zip(style, texts, strict=True)) + "</tr>"

    bodies = ["<tbody>" + "\n".join(row(cells, "td") for cells in rows) + "</tbody>" for rows in groups if rows]
    css = ' class="wrap"' if wrap else ""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table{css}>{title}<thead>{row(header, "th")}</thead>{"".join(bodies)}</table></div>'


def preformatted(text: str) -> str:
    """Plain text as it stands."""
    return f"<pre>{escape(text)}</pre>"


def details(summary: str, part: str, shown: bool = False) -> str:
    """A part that is HTML already, shown on request, or until it is hidden."""
    return f"<details{' open' if shown else ''}><summary>{escape(summary)}</summary>{part}</details>"


def number(value: float | None, pattern: str = "#.4g") -> str:
    """A number as a cell; a dash for none, and a true minus sign."""
    if value is None or not np.isfinite(value):
        return "∞" if value is not None and np.isposinf(value) else DASH
    text = format(value, pattern).removesuffix(".")
    return format(0.0, pattern) if float(text) == 0 else text.replace("-", MINUS)


def percent(share: float) -> str:
    """A share in percent, without the sign."""
    return number(100 * share, ".1f")
