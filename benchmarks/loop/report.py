"""The tables."""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.loop.ledger import ZERO, Clocks
from benchmarks.loop.pairing import MODEL, Round

CLOCKS = ("CPU", "wall")


def total(round: Round, phase: str) -> Clocks:
    """The run's time in a phase, without the bare calls."""
    return sum((clocks for (p, _), clocks in round.spent.items() if p == phase), ZERO)


def model_fractions(rounds: Sequence[Round]) -> dict[str, float]:
    """CPU seconds inside the model over those of the phase."""
    out = {}
    for phase in ("rollout", "update"):
        inside = sum(round.spent[phase, MODEL].cpu for round in rounds)
        out[phase] = inside / sum(total(round, phase).cpu for round in rounds)
    return out


def show_rounds(title: str, rounds: Sequence[Round]) -> None:
    """One row for each round and phase: its time, against the bare loop, and the fraction inside the model."""
    table = Table(title=title)
    for column in (
        "round",
        "phase",
        "pairs",
        "CPU s",
        "bare / run",
        "of pairs",
        "in the model",
        "wall s",
        "bare / run",
    ):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for i, round in enumerate(rounds):
        for phase, pairs in round.pairs.items():
            run, bare = total(round, phase), sum((b for _, b in pairs), ZERO)
            middle = sorted(b.cpu / r.cpu for r, b in pairs)[len(pairs) // 2]
            inside = round.spent[phase, MODEL].cpu / run.cpu
            numbers = f"{run.cpu:.2f}", f"{bare.cpu / run.cpu:.4f}", f"{middle:.3f}", f"{inside:.4f}", f"{run.wall:.2f}"
            table.add_row(str(i), phase, str(len(pairs)), *numbers, f"{bare.wall / run.wall:.3f}")
    Console(width=120).print(table)


def show_ratios(ratios: Mapping[str, Sequence[float]]) -> None:
    """Ratios of CPU seconds with their 95 % interval."""
    for name, (ratio, error) in ratios.items():
        print(f"bare / run, {name:<14} {ratio:.4f}  ({ratio - 1.96 * error:.4f} to {ratio + 1.96 * error:.4f})")


def show_between(rounds: Sequence[Round], least: float = 0.5) -> None:
    """Time outside the model, in milliseconds of CPU a round; the first round has separate columns.

    Args:
        rounds: all of them.
        least: milliseconds; names with less in every column share one row.
    """
    columns = {
        f"{part} {phase}": (rs, phase)
        for part, rs in (("first", rounds[:1]), ("later", rounds[1:]))
        if rs
        for phase in ("rollout", "update")
    }
    rows: dict[str, dict[str, float]] = defaultdict(dict)
    for column, (part, phase) in columns.items():
        for name in {name for round in part for p, name in round.spent if p == phase} - {MODEL}:
            spent = sum(round.spent.get((phase, name), ZERO).cpu for round in part)
            rows[name][column] = 1000 * spent / len(part)
    small = [name for name, row in rows.items() if max(row.values()) < least]
    for name in small:
        for column, spent in rows.pop(name).items():
            rows["smaller ones"][column] = rows["smaller ones"].get(column, 0.0) + spent
    table = Table(title="between the model's calls, CPU ms a round")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for name, row in sorted(rows.items(), key=lambda item: -sum(item[1].values())):
        table.add_row(name, *(f"{row.get(column, 0.0):.1f}" for column in columns))
    table.add_section()
    table.add_row("all", *(f"{sum(row.get(column, 0.0) for row in rows.values()):.1f}" for column in columns))
    Console(width=120).print(table)
    print(
        f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, the bare model's too"
    )
