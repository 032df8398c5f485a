"""The tables of a model card, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from guardlit.training.model_card.privacy import public
from guardlit.training.model_card.run_facts import RunFacts

_NOT_SCORES = ("step", "proxy", "proxy_std", "average", "average_low", "average_high")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are made public and may hold any text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(public(text).replace("|", "\\|").split())


def pairs(header: tuple[str, str], values: Mapping[str, str]) -> str:
    """A Markdown table of names and values."""
    return table(header, list(values.items()))


def scorers_table(run: RunFacts) -> str:
    """Who scored: the reward's terms and the gold scorers, each with its weights' origin; empty without any."""
    scorers: Mapping[str, Mapping[str, object]] = run.facts.get("scorers") or {}
    weights: Mapping[str, float] = (run.facts.get("reward") or {}).get("weights") or {}
    rows = []
    for name, provenance in scorers.items():
        gold = name.startswith("gold/")
        origin = "; ".join(f"{key} {value}" for key, value in provenance.items() if key != "scorer")
        weight = f"{weights[name]:g}" if name in weights else ""
        rows.append([name.removeprefix("gold/"), "gold" if gold else "proxy", weight, origin])
    return table(("scorer", "role", "weight", "provenance"), rows) if rows else ""


def gold_table(run: RunFacts) -> str:
    """The first and the last evaluation by gold scorers, and the proxy; empty without any."""
    if not run.gold:
        return ""
    first, last = run.gold[0], run.gold[-1]
    scorers = [name for name in last if name not in _NOT_SCORES]
    shown = [name for name in ("proxy", *scorers, "average") if name in last]
    header = [
        "weights",
        "updates",
        *(f"{name} (lower is better)" if name in run.lower_is_better else name for name in shown),
    ]
    rows = [[_label(row, first), f"{row['step']:.0f}", *(_score(row, name) for name in shown)] for row in (first, last)]
    return table(header, rows[: 1 if first is last else 2])


def _label(row: Mapping[str, float], first: Mapping[str, float]) -> str:
    return ("base" if row.get("step") == 0 else "first evaluation") if row is first else "last evaluation"


def _score(row: Mapping[str, float], name: str) -> str:
    value, ends = row.get(name, math.nan), [row.get(f"{name}_{end}", math.nan) for end in ("low", "high")]
    if math.isnan(value):
        return "-"
    return f"{value:.4g}" + ("" if any(map(math.isnan, ends)) else f" ({ends[0]:.3f} to {ends[1]:.3f})")
