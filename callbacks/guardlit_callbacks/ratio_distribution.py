"""Distribution of the importance ratio per denoising step, and where it is clipped (Fig. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from guardlit_callbacks.bases.round import RoundCallback, Rows
from guardlit_callbacks.figures.plots import RatioSamples, ratio_figure
from guardlit_callbacks.tools.lightning import LightningModule, Trainer
from guardlit_callbacks.tools.logging import log_figure, log_histograms, log_step_chart
from guardlit_callbacks.tools.outputs import is_skipped, read_output
from guardlit_callbacks.tools.rounds import is_due
from guardlit_callbacks.tools.statistics import clip_fractions, clip_range, max_over_min, moments, split, unmasked

KINDS = {"log_ratio": "log ratio in the objective", "raw": "raw log ratio", "normalized": "normalized log ratio"}
SIDES = ("above", "below")


class RatioDistribution(RoundCallback):
    """Monitors the distribution of the log importance ratio at every denoising step, over all samples of each round.

    A healthy log ratio has mean 0 and an equal spread at all steps, and is clipped as often above as below the range. A
    mean below 0 keeps samples of positive advantage from ever being clipped (GRPO-Guard, eq. 7 and Fig. 2).
    `ratio/figure` shows every step, and the run's folder keeps every sample.

    `training_step` returns its outputs per sample, (B,) each, under the keys named here. KIND is `log_ratio`, and `raw`
    or `normalized` where its key is given and its values differ from `log_ratio`; SIDE is `above` or `below`. Logged at
    the end of a round:

    | key | unit |
    |---|---|
    | `ratio/KIND/max_shift` | largest abs(mean) / std over the steps, no unit |
    | `ratio/clip_fraction` | of all transitions of the round those whose ratio is clipped, 0 to 1 |
    | `ratio/clip_fraction_SIDE` | of all transitions of the round those clipped on that side of the range, 0 to 1 |
    | `ratio/clip_fraction/max_over_min` | largest over smallest clipped fraction of the steps, no unit |

    With `per_step` also, for TT, the index of the denoising step in two digits, and SIGN, the advantage's, `positive`
    or `negative`. Logged at the end of a round:

    | key | unit |
    |---|---|
    | `ratio/KIND/mean/tTT`, `ratio/KIND/std/tTT` | mean or standard deviation of the step's samples, log ratio |
    | `ratio/KIND/skew/tTT` | skewness of the step's samples, no unit |
    | `ratio/KIND/mean_SIGN/tTT`, `ratio/KIND/std_SIGN/tTT` | those of the samples of one sign, log ratio |
    | `ratio/KIND/skew_SIGN/tTT` | skewness of the step's samples of one sign, no unit |
    | `ratio/clip_fraction_SIDE/tTT` | of the step's transitions those clipped on that side, 0 to 1 |
    | `ratio/clip_fraction_SIDE_SIGN/tTT` | of the step's transitions of one sign those clipped on that side, 0 to 1 |

    A key without samples in a round (no negative advantage, say) is left out; so is `max_over_min` of a round in which
    nothing is clipped, and it is infinite where a step clips nothing. Loggers that take them get the histograms
    `ratio/KIND/histogram` of all steps, or with `per_step` `ratio/KIND/histogram/tTT` of each, and the figure
    `ratio/figure`; W&B also gets the chart `ratio/KIND/by_step` wherever the figure is drawn. The run's folder gets
    `ratio/round_RRRRR.npz` with the arrays `step`, `advantage`, `log_ratio` and, where given, `raw`, `normalized`,
    `clipped` and `timestep`, (n,) each; and the figure next to it.

    Example:
        ```python
        from guardlit_callbacks import RatioDistribution
        Trainer(callbacks=[RatioDistribution(raw="raw_log_ratio", normalized="norm_log_ratio")])
        ```

    Args:
        log_ratio: key of the log ratio that the objective clips.
        raw: key of log r (eq. 7), where it differs from `log_ratio`.
        normalized: key of the normalized log ratio (eq. 8).
        advantage: key of the advantage.
        step: key of the denoising step: its index, or a float timestep that falls during denoising, as sigma (then
            the highest of a round is step 0).
        clipped: key of whether the ratio lies outside the clip range, bool; None where nothing is clipped.
        sample_weight: key of a weight; samples of weight 0 are left out. None if all count.
        draw_every: plot the first round, every so many rounds after it, and the last one; 0 for never.
        per_step: also log scalars and histograms of each denoising step: hundreds of keys.

    Raises:
        MisconfigurationException: a key is not among the outputs, or not one value per sample.
    """

    def __init__(
        self,
        log_ratio: str = "log_ratio",
        raw: str | None = None,
        normalized: str | None = None,
        advantage: str = "advantage",
        step: str = "step",
        clipped: str | None = "clipped",
        sample_weight: str | None = None,
        draw_every: int = 10,
        per_step: bool = False,
    ) -> None:
        super().__init__(per_step)
        keys = {"step": step, "log_ratio": log_ratio, "advantage": advantage, "raw": raw, "normalized": normalized}
        keys |= {"clipped": clipped, "sample_weight": sample_weight}
        self._keys = {argument: key for argument, key in keys.items() if key is not None}
        self.draw_every = draw_every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the micro-batch's values on their device."""
        if is_skipped(outputs, pl_module):
            return
        self.collect(trainer, {name: read_output(outputs, key, self, name) for name, key in self._keys.items()})

    def report(self, trainer: Trainer, number: int, rows: Rows) -> Mapping[str, float]:
        """Writes the arrays, plots, and returns the statistics."""
        rows = unmasked(rows)
        if not rows["step"].size:
            return {}
        path = self.write(trainer, "ratio", number, rows)
        for kind in distinct_kinds(rows):
            log_histograms(trainer, f"ratio/{kind}/histogram", rows["step"], rows[kind], self.per_step)
        if trainer.is_global_zero and is_due(trainer, number, self.draw_every, trainer.should_stop):
            figure = ratio_figure(_panels(rows), title=f"round {number}")
            log_figure(trainer, "ratio/figure", figure, trainer.global_step, path.with_suffix(".png") if path else None)
            for kind in distinct_kinds(rows):
                log_step_chart(trainer, f"ratio/{kind}/by_step", _curves(rows, kind), KINDS[kind])
        return ratio_statistics(rows)


def ratio_statistics(rows: Rows) -> dict[str, float]:
    """The scalars that `RatioDistribution` logs, from the columns it writes; NaN where a group has no sample."""
    groups = {"": rows["step"] >= 0, "_positive": rows["advantage"] > 0, "_negative": rows["advantage"] < 0}
    out: dict[str, float] = {}
    for suffix, chosen in groups.items():
        part = {name: values[chosen] for name, values in rows.items()}
        for kind in distinct_kinds(rows):
            for t, values in split(part["step"], part[kind]).items():
                m = moments(values)
                out |= {f"ratio/{kind}/{name}{suffix}/t{t:02d}": value for name, value in m._asdict().items()}
                if not suffix:
                    out[f"ratio/{kind}/max_shift"] = max(out.get(f"ratio/{kind}/max_shift", 0.0), m.shift)
        if "clipped" in rows:
            for t in np.unique(part["step"]):
                at = part["step"] == t
                fractions = clip_fractions(part["log_ratio"][at], part["clipped"][at])
                names = [f"ratio/clip_fraction_{side}{suffix}/t{t:02d}" for side in SIDES]
                out |= dict(zip(names, fractions, strict=True))
    if "clipped" in rows:
        out["ratio/clip_fraction_above"], out["ratio/clip_fraction_below"] = clip_fractions(
            rows["log_ratio"], rows["clipped"]
        )
        out["ratio/clip_fraction"] = float(np.mean(rows["clipped"])) if rows["clipped"].size else np.nan
        by_step = {t: float(clipped.mean()) for t, clipped in split(rows["step"], rows["clipped"]).items()}
        out["ratio/clip_fraction/max_over_min"] = max_over_min(by_step) if any(by_step.values()) else np.nan
    return out


def distinct_kinds(rows: Rows) -> list[str]:
    """The objective's log ratio, and each other kind that has different values: one of them is often the same."""
    others = [kind for kind in KINDS if kind in rows and not np.array_equal(rows[kind], rows["log_ratio"])]
    return ["log_ratio", *others]


def _curves(rows: Rows, kind: str) -> dict[str, dict[int, float]]:
    """Mean and standard deviation of a log ratio by denoising step."""
    found = {t: moments(values) for t, values in split(rows["step"], rows[kind]).items()}
    return {name: {t: getattr(m, name) for t, m in found.items()} for name in ("mean", "std")}


def _panels(rows: Rows) -> dict[str, RatioSamples]:
    """The objective's ratio with its clipping, and each other kind that has different values."""
    panels = {KINDS[kind]: RatioSamples(rows["step"], rows[kind]) for kind in distinct_kinds(rows)}
    if "clipped" in rows:
        ends = clip_range(rows["log_ratio"], rows["clipped"])[None]
        panels[KINDS["log_ratio"]] = RatioSamples(rows["step"], rows["log_ratio"], rows["clipped"], ends)
    return panels
