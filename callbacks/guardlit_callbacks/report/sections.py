"""The sections of a report: each a figure, its conclusion, and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from guardlit_callbacks.figures import (
    Band,
    gradient_figure,
    proxy_gold_figure,
    ratio_figure,
    training_figure,
)
from guardlit_callbacks.report.curves import MAX_POINTS
from guardlit_callbacks.report.html import details, paragraph, section
from guardlit_callbacks.report.methods import Method, each_run
from guardlit_callbacks.report.tables import (
    PARTS,
    change_table,
    gold_table,
    gradient_table,
    ratio_table,
)

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

EmbedFigure = Callable[["Figure", str, str, str], str]
"""Writes a figure under a name, with its alternative text and caption, and returns its HTML."""

EmbedImage = Callable[["Path", str, str, str], str]
"""The same for an image file."""


LEAST_DRIFT = 0.2
"""Relative change that the axes of the drift's figure show at least, so that a small one looks small."""


def _absent(title: str, what: str) -> str:
    return section(title, paragraph(f"Not shown: no run has {what}.", "note"))


def _seeds(methods: Sequence[Method]) -> str:
    several = max(len(method.runs) for method in methods) > 1
    return " Where a method has several runs, the line is their mean and the band their range." if several else ""


def _names(methods: Sequence[Method]) -> str:
    return ", ".join(method.label for method in methods)


def _rounds(methods: Sequence[Method], kind: str) -> str:
    """Number of "ratio" or "gradient" rounds that were read, and of all."""
    rounds = [getattr(run, kind) for method in methods for run in method.runs]
    return f"{sum(len(r.arrays) for r in rounds)} of {sum(r.found for r in rounds)} rounds"


def gold_section(methods: Sequence[Method], embed: EmbedFigure) -> str:
    """Proxy and gold over training, and the gold tables."""
    title = "Proxy reward against gold scores"
    curves = {m.label: curve for m in methods if (curve := m.proxy_gold())}
    if not curves:
        return _absent(title, "gold.csv, which GoldScore writes")
    caption = (
        "Above, the proxy reward, which is trained on: its change since the start, in standard deviations of the "
        "rewards there, so that any sign and any unit is shown alike. Below, the average of the gold scores, which are "
        "only monitored, over the base model's: 1 is the base model. The band is the 95 % interval over prompts."
        f"{_seeds(methods)} A ring marks where gold is highest before over-optimization."
    )
    alt = f"Two curves over optimizer steps: the change of the proxy reward, and the gold average, of {_names(methods)}"
    shown = embed(proxy_gold_figure(curves), "proxy_gold", alt, caption)
    return section(title, shown, gold_table(methods))


def ratio_section(methods: Sequence[Method], embed: EmbedFigure) -> str:
    """The log ratio by denoising step, and its table."""
    title = "Importance ratio at each denoising step"
    panels = {m.label: samples for m in methods if (samples := m.ratio_samples())}
    if not panels:
        return _absent(title, "ratio/round_*.npz, which RatioDistribution writes")
    caption = (
        f"Distribution of the log ratio that each objective clips, all samples of {_rounds(methods, 'ratio')}: mean "
        "(dot), mean in standard deviations (number), ends of the clip range (dashed; a band where it changed), and "
        "percentage of clipped samples. The curves leave out ratios of exactly 1, as in each round's first update; the "
        "numbers do not. A healthy log ratio is centered on 0 and clipped as often above as below."
    )
    pairs = [dict(list(panels.items())[i : i + 2]) for i in range(0, len(panels), 2)]
    names = ["ratio"] if len(pairs) == 1 else [f"ratio_{i + 1}" for i in range(len(pairs))]
    shown = [
        embed(ratio_figure(pair), name, f"Histograms of the log ratio by denoising step, of {', '.join(pair)}", caption)
        for name, pair in zip(names, pairs, strict=True)
    ]
    return section(title, *shown, ratio_table(methods))


def gradient_section(methods: Sequence[Method], embed: EmbedFigure) -> str:
    """The gradient by denoising step, and its table."""
    title = "Gradient at each denoising step"
    panels = {panel: {m.label: curve for m in methods if (curve := m.gradient(kind))} for kind, panel in PARTS.items()}
    panels = {panel: curves for panel, curves in panels.items() if curves}
    if not panels:
        return _absent(title, "gradient/round_*.npz, which GradientNorm writes")
    caption = (
        f"Mean gradient norm over {_rounds(methods, 'gradient')}, in units of the loss. max/min: largest over smallest "
        "of the steps; 1 means that every denoising step has equal weight."
    )
    alt = f"Curves of the mean gradient norm over denoising steps, of {_names(methods)}"
    return section(title, embed(gradient_figure(panels), "gradient", alt, caption), gradient_table(methods))


def drift_section(methods: Sequence[Method], keys: dict[str, str], embed: EmbedFigure) -> str:
    """Statistics of the validation images over training, and their first and last values."""
    title = "Drift of the validation images"
    panels = _panels(methods, keys)
    if not panels:
        return _absent(title, "drift/* in metrics.csv, which DriftSentinels logs")
    caption = (
        "Statistics of the validation images, which know no reward. A fast change of one of them while the proxy rises "
        f"is a sign of reward hacking. Each axis shows at least {LEAST_DRIFT:.0%} either way.{_seeds(methods)}"
    )
    alt = f"Curves of image statistics over optimizer steps, of {_names(methods)}"
    return section(
        title, embed(training_figure(panels, least_change=LEAST_DRIFT), "drift", alt, caption), change_table(panels)
    )


def training_section(methods: Sequence[Method], keys: dict[str, str], embed: EmbedFigure) -> str:
    """Curves of the keys and units given."""
    title = "Training curves"
    panels = _panels(methods, keys)
    if not panels:
        return _absent(
            title,
            "any of the default keys (rewards, clipping, KL, gradients, loss) in metrics.csv; choose with --curves",
        )
    caption = f"Logged values, averaged over epochs with several, at most {MAX_POINTS} points." + _seeds(methods)
    alt = f"Curves of {', '.join(panels)} over optimizer steps, of {_names(methods)}"
    return section(title, embed(training_figure(panels), "training", alt, caption))


def _panels(methods: Sequence[Method], keys: dict[str, str]) -> dict[str, tuple[str, dict[str, Band]]]:
    """Unit and curve of each method by key, without keys that no method has."""
    curves = {key: {m.label: curve for m in methods if (curve := m.scalar(key))} for key in keys}
    return {key: (keys[key], found) for key, found in curves.items() if found}


def samples_section(methods: Sequence[Method], embed: EmbedImage) -> str:
    """Each run's film strip; that of the first run of each method is unfolded."""
    title = "Samples over training"
    strips = [(method, name, run.film_strip) for method, name, run in each_run(methods) if run.film_strip]
    if not strips:
        return _absent(title, "samples/film_strip.png, which SampleGrid writes at the end of training")
    caption = "The same prompts and noise at successive steps, a row per validation, with each image's proxy reward."
    parts = []
    for number, (method, name, path) in enumerate(strips, start=1):
        run = f"{method.label}, {name}"
        first = method.label not in [other.label for other, _, _ in strips[: number - 1]]
        shown = embed(path, f"samples_{number}", f"Images of the same prompts at successive steps, {run}", caption)
        parts.append(details(run, shown, shown=first))
    return section(title, *parts)
