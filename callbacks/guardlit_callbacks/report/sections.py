"""The sections of a report: each a figure, its conclusion, and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from guardlit_callbacks.figures import (
    gradient_figure,
    proxy_gold_figure,
    ratio_figure,
    training_figure,
    turning_point,
)
from guardlit_callbacks.report.curves import MAX_POINTS
from guardlit_callbacks.report.html import details, paragraph, section
from guardlit_callbacks.report.methods import Method, each_run
from guardlit_callbacks.report.tables import PARTS, comparison_table, gold_table, gradient_table, ratio_table

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

EmbedFigure = Callable[["Figure", str, str, str], str]
"""Writes a figure under a name, with its alternative text and caption, and returns its HTML."""

EmbedImage = Callable[["Path", str, str, str], str]
"""The same for an image file."""


def _absent(title: str, what: str) -> str:
    return section(title, paragraph(f"Not shown: no run has {what}.", "note"))


def _seeds(methods: Sequence[Method]) -> str:
    several = max(len(method.runs) for method in methods) > 1
    return " Where a method has several runs, the line is their mean and the band their range." if several else ""


def _rounds(methods: Sequence[Method], kind: str) -> str:
    """Number of "ratio" or "gradient" rounds that were read, and of all."""
    rounds = [getattr(run, kind) for method in methods for run in method.runs]
    return f"{sum(len(r.arrays) for r in rounds)} of {sum(r.found for r in rounds)} rounds"


def gold_section(methods: Sequence[Method], embed: EmbedFigure) -> str:
    """Fig. 1 and the gold tables."""
    title = "Proxy against gold (Fig. 1)"
    curves = {m.label: curve for m in methods if (curve := m.proxy_gold())}
    if not curves:
        return _absent(title, "gold.csv, which GoldScore writes")
    caption = (
        "Proxy reward (dashed), the training objective, and the average of the gold scores (solid), which are only "
        "monitored, both over their value at the start. The band is the 95 % interval over prompts."
        f"{_seeds(methods)} A ring marks where gold is highest before over-optimization."
    )
    lines = []
    for label, curve in curves.items():
        if (best := turning_point(curve)) is None:
            lines.append(f"{label}: gold never falls from its highest beyond its noise while the proxy rises.")
        else:
            where = f"gold is highest at step {int(curve.step[best])}"
            lines.append(f"{label}: {where} and falls from there while the proxy rises: over-optimization.")
    lines += [f"{m.label}, {name}, while training: {run.verdict}." for m, name, run in each_run(methods) if run.verdict]
    shown = embed(proxy_gold_figure(curves), "fig1_proxy_gold", "Proxy and gold scores over training", caption)
    return section(title, shown, *map(paragraph, lines), gold_table(methods), comparison_table(methods))


def ratio_section(methods: Sequence[Method], embed: EmbedFigure) -> str:
    """Fig. 2 and its table."""
    title = "Importance ratio at each denoising step (Fig. 2)"
    panels = {m.label: samples for m in methods if (samples := m.ratio_samples())}
    if not panels:
        return _absent(title, "ratio/round_*.npz, which RatioDistribution writes")
    caption = (
        f"Distribution of the log ratio that each objective clips, all samples of {_rounds(methods, 'ratio')}: mean "
        "(dot), mean in standard deviations (number), and percentage of clipped samples. The curves leave out ratios "
        "of exactly 1, as in each round's first update; the numbers do not. A healthy log ratio is centered on 0 and "
        "clipped as often above as below."
    )
    pairs = [dict(list(panels.items())[i : i + 2]) for i in range(0, len(panels), 2)]
    names = ["fig2_ratio"] if len(pairs) == 1 else [f"fig2_ratio_{i + 1}" for i in range(len(pairs))]
    alt = "Distribution of the log ratio per denoising step"
    shown = [embed(ratio_figure(pair), name, alt, caption) for name, pair in zip(names, pairs, strict=True)]
    return section(title, *shown, ratio_table(methods))


def gradient_section(methods: Sequence[Method], embed: EmbedFigure) -> str:
    """Fig. 3 and its table."""
    title = "Gradient at each denoising step (Fig. 3)"
    panels = {panel: {m.label: curve for m in methods if (curve := m.gradient(kind))} for kind, panel in PARTS.items()}
    panels = {panel: curves for panel, curves in panels.items() if curves}
    if not panels:
        return _absent(title, "gradient/round_*.npz, which GradientNorm writes")
    caption = (
        f"Mean gradient norm over {_rounds(methods, 'gradient')}, in units of the loss. max/min: largest over smallest "
        "of the steps; 1 means that every denoising step has equal weight."
    )
    shown = embed(gradient_figure(panels), "fig3_gradient", "Gradient norm per denoising step", caption)
    return section(title, shown, gradient_table(methods))


def training_section(methods: Sequence[Method], keys: dict[str, str], embed: EmbedFigure) -> str:
    """Fig. 7, of the keys and units given."""
    title = "Training curves (Fig. 7)"
    curves = {key: {m.label: curve for m in methods if (curve := m.scalar(key))} for key in keys}
    panels = {key: (keys[key], found) for key, found in curves.items() if found}
    if not panels:
        return _absent(
            title,
            "any of the default keys (rewards, clipping, KL, gradients, loss) in metrics.csv; choose with --curves",
        )
    caption = f"Logged values, averaged over epochs with several, at most {MAX_POINTS} points." + _seeds(methods)
    return section(title, embed(training_figure(panels), "fig7_training", "Training curves", caption))


def samples_section(methods: Sequence[Method], embed: EmbedImage) -> str:
    """Fig. 9: each run's film strip; that of the first run of each method is unfolded."""
    title = "Samples over training (Fig. 9)"
    strips = [(method, name, run.film_strip) for method, name, run in each_run(methods) if run.film_strip]
    if not strips:
        return _absent(title, "samples/film_strip.png, which SampleGrid writes at the end of training")
    caption = "The same prompts and noise at successive steps, a row per validation, with each image's proxy reward."
    parts = []
    for number, (method, name, path) in enumerate(strips, start=1):
        run = f"{method.label}, {name}"
        first = method.label not in [other.label for other, _, _ in strips[: number - 1]]
        shown = embed(path, f"fig9_samples_{number}", f"Samples over training, {run}", caption)
        parts.append(details(run, shown, shown=first))
    return section(title, *parts)
