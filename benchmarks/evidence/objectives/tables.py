"""The tables and sentences of docs/evidence_objectives.md, from the document of results alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.evidence.objectives.collect import differences
from benchmarks.evidence.objectives.methods import BASELINES, GOAL, PER_STEP
from benchmarks.evidence.tables import Document, by_seed, estimate, number, step_of, steps_by_seed, table

SAME_PROXY = 0.005
"""A difference of proxies that counts as none, where gold is compared after equal updates."""
CAPTIONS = {
    "frontier": "Gold against proxy, a panel a method, with Flow-GRPO and GRPO-Guard in gray",
    "distance": "Gold against the distance from the base, a panel a method, with Flow-GRPO and GRPO-Guard in gray",
    "evenness": "Clipped fraction of the off-policy transitions by denoising step",
}


def state(document: Document) -> str:
    """How much of the plan the page shows."""
    done, plan = document["seeds"], document["plan"]
    of = f"{len(plan['methods'])} methods, {plan['rounds']} rounds each"
    if not done:
        return f"No seed of {len(plan['seeds'])} is finished yet ({of}): there are no results."
    failed = f" Failed: {', '.join(document['failed'])}." if document["failed"] else ""
    seeds = f"{len(done)} of {len(plan['seeds'])} seeds are finished ({', '.join(map(str, done))}); {of}."
    single = " With one seed, intervals are over prompts alone." if len(done) == 1 else ""
    cost = document["cost"]
    return f"{seeds}{single} {cost['runs']} runs took {cost['cpu_minutes']:.0f} CPU minutes.{failed}"


def verdict(document: Document) -> str:
    """What the intervals show, for each baseline, and how even the clip is."""
    if not document["seeds"]:
        return "There is no verdict without a finished seed."
    lines = [_gold(document, baseline) for baseline in BASELINES if baseline in document["methods"]]
    lines += [_at_the_end(document), _speed(document), _even(document)]
    return "\n".join(f"- {line}" for line in lines if line)


def _gold(document: Document, baseline: str) -> str:
    levels = [level for level in document["plan"]["levels"]["proxy"] if level >= document["plan"]["compared"][0]]
    found = {place: d for place, d in differences(document, "proxy", baseline).items() if place[0] in levels}
    known = {place: d for place, d in found.items() if d["low"] is not None}
    at = " or ".join(f"{level:g}" for level in levels)
    said = _decided({_named(place, d): d for place, d in known.items()})
    return f"Against {baseline}, at an equal proxy of {at}: {said}."


def _decided(found: Mapping[str, Mapping[str, float]]) -> str:
    """Which differences have intervals on one side of 0; by the name to print."""
    sides = {
        "more": [name for name, d in found.items() if d["low"] > 0],
        "less": [name for name, d in found.items() if d["high"] < 0],
    }
    said = [
        f"{', '.join(names)} {'keeps' if len(names) == 1 else 'keep'} {side} gold"
        if names
        else f"no method is shown to keep {side} gold"
        for side, names in sides.items()
    ]
    return f"{'; '.join(said)} ({len(found)} intervals, not corrected)"


def _at_the_end(document: Document) -> str:
    """The gold of methods that train as fast as GRPO-Guard, once it is well past its peak."""
    baseline = BASELINES[1]
    step = document["plan"]["levels"]["step"][-1]
    proxies = {name: _proxy_at(own, step) for name, own in document["methods"].items()}
    if baseline not in proxies:
        return ""
    found = {
        f"{name} (proxy {number(proxies[name])}: {estimate(d, signed=True)})": d
        for (level, name), d in differences(document, "step", baseline).items()
        if level == step and d["low"] is not None and abs(proxies[name] - proxies[baseline]) <= SAME_PROXY
    }
    return (
        f"Against {baseline}, after {step} updates, of the methods whose proxy is then within {SAME_PROXY:g} of its "
        f"{number(proxies[baseline])}: {_decided(found)}."
    )


def _proxy_at(own: Mapping[str, Any], step: float) -> float:
    curves = [seed["curves"] for seed in own["seeds"].values()]
    return sum(float(np.interp(step, c["step"], c["proxy"])) for c in curves) / len(curves)


def _named(place: tuple[float, str], found: Mapping[str, float]) -> str:
    return f"{place[1]} (at {place[0]:g}: {estimate(found, signed=True)})"


def _speed(document: Document) -> str:
    level = document["plan"]["compared"][0]
    rows = [r for r in document["frontier"]["axes"]["proxy"]["levels"] if r["level"] == level]
    steps = {row["method"]: row["step"] for row in rows if row["step"] is not None}
    missing = [row["method"] for row in rows if row["step"] is None]
    late = f" Not at every seed: {', '.join(missing)}." if missing else ""
    if not steps:
        return f"No method reaches a proxy of {level:g} at every seed."
    ordered = ", ".join(f"{name} {steps[name]:.0f}" for name in sorted(steps, key=lambda name: steps[name]))
    return f"Updates to a proxy of {level:g}, fewest first: {ordered}.{late}"


def _even(document: Document) -> str:
    spreads = _spreads(document)
    rows = document["plan"]["methods"]
    even = {name: own for name, own in spreads.items() if rows[name]["clip_range"] == PER_STEP}
    kept = [name for name, own in even.items() if all(value is not None and value <= GOAL for value in own)]
    rest = [name for name in even if name not in kept]
    if not even:
        return ""
    said = [f"{', '.join(kept)} at every seed"] if kept else []
    said += [f"not {', '.join(rest)}"] if rest else []
    goal = f"With a range for each denoising step, no step is clipped more than {GOAL:g} times as often as another"
    return f"{goal}: {'; '.join(said)}."


def _spreads(document: Document) -> dict[str, list[float | None]]:
    return {name: [run["max_over_min"] for run in own["clipped"]] for name, own in document["methods"].items()}


def gold(document: Document) -> str:
    """Gold at equal proxy with the differences from every baseline."""
    header = ["proxy", "method", "update", "gold Average", *(f"minus {name}" for name in BASELINES), "by seed"]
    rows = [
        [
            f"{row['level']:g}",
            row["method"],
            step_of(row),
            estimate(row["scores"]["average"]),
            *(estimate(row["against"].get(name), signed=True) for name in BASELINES),
            by_seed(row["against"].get(BASELINES[0])),
        ]
        for row in _levels(document, "proxy")
        if row["step"] is not None
    ]
    return table(header, rows)


def at_updates(document: Document) -> str:
    """Gold, and the proxy, at equal numbers of updates."""
    rows = [
        [
            f"{row['level']:g}",
            row["method"],
            number(_proxy_at(document["methods"][row["method"]], row["level"])),
            estimate(row["scores"]["average"]),
            *(estimate(row["against"].get(name), signed=True) for name in BASELINES[:2]),
            by_seed(row["against"].get(BASELINES[1])),
        ]
        for row in _levels(document, "step")
    ]
    minus = [f"minus {name}" for name in BASELINES[:2]]
    return table(["update", "method", "proxy", "gold Average", *minus, f"minus {BASELINES[1]}, by seed"], rows)


def distance(document: Document) -> str:
    """Gold at equal distance from the base."""
    rows = [
        [
            f"{row['level']:.3g}",
            row["method"],
            estimate(row["scores"]["average"], interval=False),
            *(estimate(row["against"].get(name), signed=True) for name in BASELINES),
        ]
        for row in _levels(document, "sqrt_kl")
        if row["step"] is not None
    ]
    return table(["sqrt(KL)", "method", "gold Average", *(f"minus {name}" for name in BASELINES)], rows)


def updates(document: Document) -> str:
    """Updates to each proxy, mean over seeds and each seed's, and where the runs end."""
    levels = document["plan"]["levels"]["proxy"]
    found = {(row["method"], row["level"]): row for row in _levels(document, "proxy")}
    rows = []
    for summary in document["frontier"].get("methods", []):
        name, last = summary["label"], summary["last"]
        own = document["methods"][name]
        cells = [f"{step_of(found[name, v])} ({steps_by_seed(own, v)})" for v in levels]
        end = [number(last["proxy"]), number(last["sqrt_kl"], 1), estimate(last["scores"]["average"], interval=False)]
        rows.append([name, *cells, *end])
    header = ["method", *(f"updates to {v:g} (by seed)" for v in levels), "last proxy", "last sqrt(KL)", "last gold"]
    return table(header, rows)


def evenness(document: Document) -> str:
    """Clipped fractions by denoising step, their spread at each seed, and the shift of the log ratio."""
    steps = sorted({int(t) for own in document["methods"].values() for run in own["clipped"] for t in run["by_step"]})
    rows = []
    for name, own in document["methods"].items():
        cells = [number(_mean([run["by_step"].get(str(t)) for run in own["clipped"]]), 2) for t in steps]
        shift = max((abs(s["pooled"]) for s in own["ratio"].values() if s["pooled"] is not None), default=None)
        spread = own["gradient_max_over_min"]["velocity"]
        by_run = ", ".join(number(run["max_over_min"], 2) for run in own["clipped"])
        rows.append([name, *cells, by_run, number(shift, 2), number(spread, 1)])
    header = ["method", *(f"step {t}" for t in steps), "max/min by seed", "largest shift (std)"]
    return table([*header, "max/min, gradient"], rows)


def figure(name: str) -> Callable[[Document], str]:
    """A picture, once there is a seed to draw."""

    def render(document: Document) -> str:
        if not document["seeds"]:
            return "No picture without a finished seed."
        return f"![{CAPTIONS[name]}](images/evidence_objectives_{name}.png)"

    return render


def _levels(document: Document, axis: str) -> list[Document]:
    return document["frontier"]["axes"][axis]["levels"] if document["frontier"] else []


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


TABLES: Mapping[str, Callable[[Document], str]] = {
    "state": state,
    "verdict": verdict,
    "gold": gold,
    "at_updates": at_updates,
    "distance": distance,
    "updates": updates,
    "evenness": evenness,
    **{f"{name}_figure": figure(name) for name in CAPTIONS},
}
"""By the name that the page's markers have."""
