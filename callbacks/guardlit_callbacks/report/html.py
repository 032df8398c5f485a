"""HTML elements of a report; text is escaped here."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

Rows = Sequence[Sequence[str]]

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
STYLE = Path(__file__).with_name("style.css")


def page(title: str, sections: Sequence[str]) -> str:
    """A self-contained document of HTML sections."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{STYLE.read_text(encoding='utf-8')}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *sections,
            "</body></html>\n",
        ]
    )


def section(title: str, *parts: str) -> str:
    """A heading and HTML parts; the heading stays on one printed page with the first part."""
    first, *others = parts or ("",)
    return "\n".join([f'<section><div class="keep"><h2>{escape(title)}</h2>', first, "</div>", *others, "</section>"])


def paragraph(text: str, css: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def image(data: bytes, kind: str, alt: str, caption: str, files: Sequence[str]) -> str:
    """An embedded image of a kind, "svg+xml" or "png", with a plain-text caption and links to its files."""
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    links = ", ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in files)
    text = f"{escape(caption)} {'Files' if len(files) > 1 else 'File'}: {links}."
    picture = f'<div class="scroll"><img src="{source}" alt="{escape(alt)}"></div>'
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"


def table(header: Sequence[str], *groups: Rows, text: int = 1, caption: str = "", wrap: bool = False) -> str:
    """A table with a line above each group of rows; the first `text` columns are left-aligned, the others right.

    `wrap` breaks long lines at spaces, and names and paths at their separators. On a narrow screen each row becomes a
    list of names and values, so that nothing is cut off.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        style = [' class="text"' if i < text else "" for i in range(len(cells))]
        texts = [re.sub(r"([/._])", r"\1<wbr>", escape(c)) if wrap else escape(c) for c in cells]
        names = [f' data-name="{escape(name)}"' if tag == "td" else "" for name in header]
        parts = zip(style, names, texts, strict=True)
        return "<tr>" + "".join(f"<{tag}{s}{n}>{t}</{tag}>" for s, n, t in parts) + "</tr>"

    bodies = ["<tbody>" + "\n".join(row(cells, "td") for cells in rows) + "</tbody>" for rows in groups if rows]
    css = ' class="wrap"' if wrap else ""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table{css}>{title}<thead>{row(header, "th")}</thead>{"".join(bodies)}</table></div>'


def preformatted(text: str) -> str:
    """Preformatted plain text."""
    return f"<pre>{escape(text)}</pre>"


def details(summary: str, part: str, shown: bool = False) -> str:
    """An HTML part that can be folded; open if `shown`."""
    return f"<details{' open' if shown else ''}><summary>{escape(summary)}</summary>{part}</details>"


def number(value: float | None, pattern: str = "#.4g") -> str:
    """A number as a cell: a dash for None and NaN, and a typographic minus sign."""
    if value is None or not np.isfinite(value):
        return "∞" if value is not None and np.isposinf(value) else DASH
    text = format(value, pattern).removesuffix(".")
    return format(0.0, pattern) if float(text) == 0 else text.replace("-", MINUS)


def percent(fraction: float) -> str:
    """A fraction in percent, without the sign."""
    return number(100 * fraction, ".1f")
