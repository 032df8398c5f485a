"""The tables of docs/evidence*.md, from the document of results alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from guardlit_callbacks.frontier import first_crossing, values_at

from benchmarks.evidence.worlds import PAIR

Document = Mapping[str, Any]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cost(world: Document) -> str:
    """Runs, rounds and CPU minutes of each stage."""
    stages = [(name, found) for name, found in world["cost"].items() if found["runs"]]
    rows = [[name, str(c["runs"]), str(c["rounds"]), f"{c['cpu_minutes']:.0f}"] for name, c in stages]
    total = [sum(c[key] for _, c in stages) for key in ("runs", "rounds", "cpu_minutes")]
    return table(["stage", "runs", "rounds", "CPU minutes"], [*rows, ["total", *(f"{number:.0f}" for number in total)]])


def ranges(world: Document) -> str:
    """The log ratio above which a fraction of the off-policy transitions lies."""
    found = [c for c in world["calibration"] if not c["condition"]]
    fractions = list(found[0]["log_ratio"])
    rows = [[c["objective"], f"{c['lr']:g}", *(f"{c['log_ratio'][f]:.1e}" for f in fractions)] for c in found]
    return table(["objective", "learning rate", *(f"clips {float(f):.0%}" for f in fractions)], rows)


def sweep(world: Document) -> str:
    """Mean gold at equal proxy for the grid; in brackets the highest proxy of a run that does not get that far."""
    grid, rows = world["plan"]["sweep"], []
    for method, found in world["sweep"].items():
        by = {(p["setting"]["lr"], p["setting"]["clipped"]): p for p in found}
        for lr in grid["learning_rates"]:
            cells = [by.get((lr, f)) for f in grid["clipped"]]
            rows.append([method, f"{lr:g}", *(_point(p) if p else "failed" for p in cells)])
    return table(["objective", "learning rate", *(f"clips {f:.0%}" for f in grid["clipped"])], rows)


def _point(found: Document) -> str:
    return f"({found['proxy']:.3f})" if found["frontier"] is None else f"{found['frontier']:.3f}"


def _reference(world: Document) -> Document:
    """The comparison at the reference setting."""
    (found,) = [s for s in world["settings"] if s["setting"] == world["plan"]["reference"]]
    return found  # type: ignore[no-any-return]


def at_levels(axis: str) -> Callable[[Document], str]:
    """Gold at equal values of an axis, and its difference from the baseline, of methods whose seeds all get there."""

    def render(world: Document) -> str:
        found = _reference(world)["frontier"]["axes"][axis]
        other = sorted({name for row in found["levels"] for name in row["scores"]} - {"average"})
        rows = [
            [
                f"{row['level']:.3g}",
                row["method"],
                step_of(row),
                estimate(row["scores"]["average"]),
                estimate(row["differences"].get("average"), signed=True),
                by_seed(row["differences"].get("average")),
                *(estimate(row["scores"].get(name), interval=False) for name in other),
            ]
            for row in found["levels"]
            if row["step"] is not None
        ]
        return table([axis, "method", "update", "gold Average", "minus Flow-GRPO", "by seed", *other], rows)

    return render


def by_seed(found: Mapping[str, Any] | None) -> str:
    """A difference at each seed."""
    return ", ".join(number(value, signed=True) for value in found["by_seed"]) if found else "-"


def summary(world: Document) -> str:
    """Each method at the reference setting: updates to the compared proxies, and gold at the second of them."""
    low, high = world["plan"]["compared"]
    found = _reference(world)
    levels = found["frontier"]["axes"]["proxy"]["levels"]
    early = {row["method"]: row for row in levels if row["level"] == low}
    rows = [
        [
            row["method"],
            step_of(early[row["method"]]),
            step_of(row),
            steps_by_seed(found["methods"][row["method"]], high),
            *_against(row),
            by_seed(row["differences"].get("average")),
        ]
        for row in levels
        if row["level"] == high
    ]
    header = ["method", f"updates to a proxy of {low:g}", f"to {high:g}", "by seed", f"gold at {high:g}"]
    return table([*header, "minus Flow-GRPO", "by seed"], rows)


def step_of(row: Document) -> str:
    """The update at which a level is reached."""
    return "-" if row["step"] is None else f"{row['step']:.0f}"


def steps_by_seed(method: Document, level: float) -> str:
    """The update at which each seed reaches a proxy."""
    curves = [seed["curves"] for seed in method["seeds"].values()]
    crossings = [first_crossing(np.array([own["proxy"]]), np.array([[level]])) for own in curves]
    found = [values_at(np.array([own["step"]]), at).item() for own, at in zip(curves, crossings, strict=True)]
    return ", ".join("-" if math.isnan(value) else f"{value:.0f}" for value in found)


def areas(world: Document) -> str:
    """Mean gold over the range of an axis that all runs cover, and its difference from the baseline."""
    rows = []
    for axis, found in _reference(world)["frontier"]["axes"].items():
        for row in found["means"]:
            scores, differences = row["scores"]["average"], row["differences"].get("average")
            rows.append(
                [
                    f"{axis} {found['low']:.3g} to {found['high']:.3g}",
                    row["method"],
                    estimate(scores),
                    estimate(differences, signed=True),
                ]
            )
    return table(["range", "method", "mean gold Average", "minus Flow-GRPO"], rows)


def best(world: Document) -> str:
    """The over-optimization point of each method, and what is lost after it."""
    rows = []
    for found in _reference(world)["frontier"]["methods"]:
        point, last = found["best"], found["last"]
        rows.append(
            [
                found["label"],
                f"{point['step']:.0f}",
                number(point["proxy"]),
                number(point["sqrt_kl"], 1),
                estimate(point["scores"]["average"]),
                f"{last['step']:.0f}",
                number(last["proxy"]),
                estimate(last["scores"]["average"]),
                estimate(found["drop"]),
            ]
        )
    header = ["method", "best at update", "proxy", "sqrt(KL)", "gold Average", "last update", "proxy", "gold Average"]
    return table([*header, "lost"], rows)


def ratios(world: Document) -> str:
    """Shift of the log ratio, clip fractions and gradient scale over the denoising steps."""
    rows = []
    for method, found in _reference(world)["methods"].items():
        steps = list(found["ratio"].values())
        spread = found["gradient_max_over_min"]
        rows.append(
            [
                method,
                number(steps[-1]["pooled"], 2, signed=True),
                number(max(abs(s["pooled"]) for s in steps), 2),
                number(steps[0]["below"]) + " / " + number(steps[0]["above"]),
                number(steps[-1]["below"]) + " / " + number(steps[-1]["above"]),
                number(spread["velocity"], 1),
                number(spread["parameters"], 1),
            ]
        )
    header = ["method", "shift at the last step (std)", "largest shift", "clipped below / above, first step"]
    return table([*header, "last step", "max/min, velocity", "max/min, parameters"], rows)


def drift(world: Document) -> str:
    """Drift sentinels at the last evaluation over those of the base, means over seeds."""
    methods = _reference(world)["methods"]
    keys = sorted(
        {k for m in methods.values() for s in m["seeds"].values() for k in s["scalars"] if k.endswith("_ratio")}
    )
    rows = []
    for method, found in methods.items():
        last = [[s["scalars"][k]["value"][-1] for s in found["seeds"].values() if k in s["scalars"]] for k in keys]
        rows.append([method, *(number(sum(v) / len(v), 2) if v else "-" for v in last)])
    return table(["method", *(k.removeprefix("drift/").removesuffix("_ratio") for k in keys)], rows)


def settings(world: Document) -> str:
    """Methods at equal settings: mean gold over the compared proxies, gold at the last, the best and the last gold."""
    low, high = world["plan"]["compared"]
    rows = []
    for found in world["settings"]:
        levels = found["frontier"]["axes"]["proxy"]["levels"]
        at = {row["method"]: row for row in levels if row["level"] == high}
        for method in found["frontier"]["methods"]:
            name = method["label"]
            seeds = found["methods"][name]["mean_gold"]
            rows.append(
                [
                    f"{found['setting']['lr']:g}, {found['setting']['clipped']:.0%}",
                    name,
                    f"{found['methods'][name]['clip_range']:.1e}",
                    number(None if None in seeds else sum(seeds) / len(seeds)),
                    ", ".join(map(number, seeds)),
                    *_against(at[name]),
                    estimate(method["best"]["scores"]["average"], interval=False),
                    number(method["last"]["proxy"]),
                    estimate(method["last"]["scores"]["average"], interval=False),
                ]
            )
    header = ["setting", "method", "clip range", f"mean gold, {low:g} to {high:g}", "by seed", f"gold at {high:g}"]
    return table([*header, "minus Flow-GRPO", "best gold", "last proxy", "last gold"], rows)


def _against(row: Document) -> list[str]:
    return [
        estimate(row["scores"]["average"], interval=False),
        estimate(row["differences"].get("average"), signed=True),
    ]


def conditions(world: Document) -> str:
    """The pair under each condition: gold at equal proxies, the best and the last, and how far ratios are shifted."""
    levels = [v for v in world["plan"]["levels"]["proxy"] if v >= world["plan"]["compared"][0]]
    rows = []
    for name, found in {"as configured": _reference(world), **world["conditions"]}.items():
        if not found["frontier"]:
            continue
        at = {(row["level"], row["method"]): row for row in found["frontier"]["axes"]["proxy"]["levels"]}
        for method in [m for m in found["frontier"]["methods"] if m["label"] in PAIR]:
            label = method["label"]
            rows.append(
                [
                    name,
                    label,
                    *(_alone_or_against(at.get((v, label)), label) for v in levels),
                    estimate(method["best"]["scores"]["average"], interval=False),
                    f"{method['best']['step']:.0f}",
                    number(method["last"]["proxy"]),
                    estimate(method["last"]["scores"]["average"], interval=False),
                    number(max(abs(s["pooled"]) for s in found["methods"][label]["ratio"].values()), 2),
                ]
            )
    header = ["condition", "method", *(f"gold at {v:g}" for v in levels), "best gold", "at update"]
    return table([*header, "last proxy", "last gold", "largest shift (std)"], rows)


def _alone_or_against(row: Document | None, label: str) -> str:
    """Gold at a level; of another method than the baseline, its difference from the baseline's."""
    if row is None:
        return "-"
    if label == PAIR[0]:
        return estimate(row["scores"]["average"], interval=False)
    return estimate(row["differences"].get("average"), signed=True)


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A number, or `-` where there is none."""
    return "-" if value is None else f"{value:{'+' if signed else ''}.{digits}f}"


def estimate(found: Mapping[str, Any] | None, signed: bool = False, interval: bool = True) -> str:
    """An estimate with its interval."""
    if found is None or found["value"] is None:
        return "-"
    text = number(found["value"], signed=signed)
    if not interval or found["low"] is None:
        return text
    return f"{text} ({number(found['low'], signed=signed)} to {number(found['high'], signed=signed)})"


TABLES: Mapping[str, Callable[[Document], str]] = {
    "cost": cost,
    "ranges": ranges,
    "sweep": sweep,
    "summary": summary,
    "proxy": at_levels("proxy"),
    "sqrt_kl": at_levels("sqrt_kl"),
    "updates": at_levels("step"),
    "areas": areas,
    "best": best,
    "ratios": ratios,
    "drift": drift,
    "settings": settings,
    "conditions": conditions,
}
"""By the name that the page's markers have."""
