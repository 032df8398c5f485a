"""The sections of a report: each a figure, what it says, and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from guardlit_callbacks.figures.plots import gradient_figure, proxy_gold_figure, ratio_figure, training_figure
from guardlit_callbacks.report.curves import MAX_POINTS
from guardlit_callbacks.report.data import ReportError, Run
from guardlit_callbacks.report.html import details, paragraph, section
from guardlit_callbacks.report.methods import Method, over_optimized_at, rounds_read
from guardlit_callbacks.report.tables import (
    PARTS,
    comparison_table,
    each_run,
    gold_table,
    gradient_table,
    ratio_table,
)

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

CURVES = (
    ("reward", ("reward/*_mean", "train*reward")),
    ("reward", ("val*reward", "reward")),
    ("share of samples", ("ratio/clipped", "train/clip_*", "*clip*frac*")),
    ("KL divergence", ("*kl",)),
    ("norm, loss / parameter", ("gradient/norm_before_clipping", "*grad_norm")),
    ("largest / smallest step", ("gradient/velocity/max_over_min",)),
    ("largest abs(mean) / std", ("ratio/log_ratio/max_shift",)),
    ("std of ratio", ("*ratio_std",)),
    ("loss", ("*loss",)),
)
"""What Fig. 7 shows by default: a unit, and patterns of logged keys, of which the first that fits is taken."""

MAX_PANELS = 12

Draw = Callable[["Figure", str, str, str], str]
"""Writes a figure under a name, with its alternative text and caption, and gives the HTML that shows it."""

Show = Callable[["Path", str, str, str], str]
"""The same of a picture that there is already."""


def _verdicts(methods: Sequence[Method]) -> list[str]:
    """What OverOptimizationStop said while the runs went on."""
    told = [(method.label, name, run.verdict) for method, name, run in each_run(methods)]
    return [f"{label}, {name}, while training: {verdict}." for label, name, verdict in told if verdict]


def _absent(title: str, what: str) -> str:
    return section(title, paragraph(f"Not shown: no run has {what}.", "note"))


def _seeds(methods: Sequence[Method]) -> str:
    several = max(len(method.runs) for method in methods) > 1
    return " Where a method has several runs, the line is their mean and the band their range." if several else ""


def gold_section(methods: Sequence[Method], draw: Draw) -> str:
    """Fig. 1 and the gold tables; where no run has scores, that."""
    title = "Proxy against gold (Fig. 1)"
    curves = {m.label: curve for m in methods if (curve := m.proxy_gold())}
    if not curves:
        return _absent(title, "gold.csv, which GoldScore writes")
    caption = (
        "Proxy reward (dashed), which is trained on, and the average of the gold scores (solid), which are only "
        "watched, both over their value at the start. The band is the 95 % interval over prompts."
        + _seeds(methods)
        + " A ring marks where "
        "gold is highest before over-optimization."
    )
    points = {label: over_optimized_at(curve) for label, curve in curves.items()}
    said = [
        f"{label}: gold is highest at step {at} and falls from there while the proxy rises: over-optimization."
        if at is not None
        else f"{label}: gold never falls from its highest beyond its noise while the proxy rises."
        for label, at in points.items()
    ]
    shown = draw(proxy_gold_figure(curves), "fig1_proxy_gold", "Proxy and gold scores over training", caption)
    return section(
        title, shown, *map(paragraph, said + _verdicts(methods)), gold_table(methods), comparison_table(methods)
    )


def ratio_section(methods: Sequence[Method], draw: Draw) -> str:
    """Fig. 2 and its table."""
    title = "Importance ratio at each denoising step (Fig. 2)"
    panels = {m.label: samples for m in methods if (samples := m.ratio_samples())}
    if not panels:
        return _absent(title, "ratio/round_*.npz, which RatioDistribution writes")
    read, found = rounds_read(methods, "ratio")
    caption = (
        f"Distribution of the log ratio that each objective clips, all samples of {read} of {found} rounds together: "
        "mean (dot), mean in units of the standard deviation (number), and shares of samples that were clipped. The "
        "curves leave out ratios of exactly 1, as in each round's first update; the numbers do not. "
        "A healthy ratio is centred on 0 and clipped as often above as below."
    )
    pairs = [dict(list(panels.items())[i : i + 2]) for i in range(0, len(panels), 2)]
    names = ["fig2_ratio"] if len(pairs) == 1 else [f"fig2_ratio_{i + 1}" for i in range(len(pairs))]
    alt = "Distribution of the log ratio per denoising step"
    shown = [draw(ratio_figure(pair), name, alt, caption) for name, pair in zip(names, pairs, strict=True)]
    return section(title, *shown, ratio_table(methods))


def gradient_section(methods: Sequence[Method], draw: Draw) -> str:
    """Fig. 3 and its table."""
    title = "Gradient at each denoising step (Fig. 3)"
    panels = {panel: {m.label: curve for m in methods if (curve := m.gradient(kind))} for kind, panel in PARTS.items()}
    panels = {panel: curves for panel, curves in panels.items() if curves}
    if not panels:
        return _absent(title, "gradient/round_*.npz, which GradientNorm writes")
    read, found = rounds_read(methods, "gradient")
    caption = (
        f"Mean gradient norm over {read} of {found} rounds, in units of the loss. max/min: largest over smallest of "
        "the steps; 1 means that every denoising step weighs the same."
    )
    shown = draw(gradient_figure(panels), "fig3_gradient", "Gradient norm per denoising step", caption)
    return section(title, shown, gradient_table(methods))


def training_section(methods: Sequence[Method], keys: dict[str, str], draw: Draw) -> str:
    """Fig. 7, of the keys and units given."""
    title = "Training curves (Fig. 7)"
    curves = {key: {m.label: curve for m in methods if (curve := m.scalar(key))} for key in keys}
    panels = {key: (keys[key], found) for key, found in curves.items() if found}
    if not panels:
        return _absent(
            title,
            "what is shown by default (rewards, clipping, KL, gradients, loss) in metrics.csv; choose with --curves",
        )
    caption = f"Logged values; several an epoch are averaged, and {MAX_POINTS} points shown at most." + _seeds(methods)
    return section(title, draw(training_figure(panels), "fig7_training", "Training curves", caption))


def samples_section(methods: Sequence[Method], show: Show) -> str:
    """Fig. 9: each run's film strip; the first run of each method is open, its other seeds on request."""
    title = "Samples over training (Fig. 9)"
    strips = [(method, name, run.film_strip) for method, name, run in each_run(methods) if run.film_strip]
    if not strips:
        return _absent(title, "samples/film_strip.png, which SampleGrid writes at the end of training")
    caption = (
        "The same prompts and noise at successive steps, one row a validation, with the proxy's score of each image."
    )
    parts = []
    for number, (method, name, path) in enumerate(strips, start=1):
        own = f"{method.label}, {name}"
        first = method.label not in [other.label for other, _, _ in strips[: number - 1]]
        shown = show(path, f"fig9_samples_{number}", f"Samples over training, {own}", caption)
        parts.append(details(own, shown, shown=first))
    return section(title, *parts)


def curve_keys(runs: Sequence[Run], patterns: Sequence[str]) -> dict[str, str]:
    """The logged keys to show and their units, in the order of the patterns."""
    logged = sorted({key for run in runs for key in run.scalars})
    for pattern in patterns:
        if not any(fnmatchcase(key, pattern) for key in logged):
            raise ReportError(f"--curves {pattern!r} is no logged key; there are {', '.join(logged) or 'none'}")
    fitting = {p: [key for key in logged if fnmatchcase(key, p)] for p in patterns}
    if not patterns:
        fitting = {p: keys for _, choice in CURVES for p, keys in [_first_fitting(choice, logged)]}
    chosen = list(dict.fromkeys(key for keys in fitting.values() for key in keys))
    if len(chosen) > MAX_PANELS:
        raise ReportError(f"Fig. 7 would have {len(chosen)} panels, {MAX_PANELS} at most; choose keys with --curves")
    return {key: _unit(key) for key in chosen}


def _first_fitting(patterns: Sequence[str], logged: Sequence[str]) -> tuple[str, list[str]]:
    found = ((pattern, [key for key in logged if fnmatchcase(key, pattern)]) for pattern in patterns)
    return next(((pattern, keys) for pattern, keys in found if keys), (patterns[0], []))


def _unit(key: str) -> str:
    return next((unit for unit, patterns in CURVES if any(fnmatchcase(key, p) for p in patterns)), "value")
