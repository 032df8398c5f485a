"""Gold scores: evaluated during training, never trained on (Fig. 1)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guardlit_callbacks.bases.validation import ValidationCallback, is_partial, log_validation
from guardlit_callbacks.composite import Interval, bootstrap
from guardlit_callbacks.figures.plots import ProxyGoldCurve, proxy_gold_figure
from guardlit_callbacks.tools.folders import run_dir
from guardlit_callbacks.tools.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from guardlit_callbacks.tools.logging import log_figure
from guardlit_callbacks.tools.outputs import read_output, read_value
from guardlit_callbacks.tools.scoring import ScoreRequest, Scorers, can_close, named, score, set_up
from guardlit_callbacks.tools.statistics import Array

PROXY = "proxy"

Sample = dict[str, Any]
"""A sample's prompt, its scores by scorer and, where given, its proxy reward and index."""


class GoldScore(ValidationCallback[Sample]):
    """Scores the validation images with scorers that training never sees, and plots them with the proxy reward.

    `validation_step` returns its images, sampled for the same prompts from the same noise every time. Their scores are
    averaged per prompt. `gold/average` is the paper's Average, the mean over scorers of score / base. The base is the
    argument `base`, or else the evaluation at step 0: get one by `Trainer(num_sanity_val_steps=-1)` or by
    `trainer.validate(...)` before `fit`; without it the first evaluation is the base, with a warning. The 95 % interval
    is a bootstrap over prompts, with the same resamples for base and scores. To keep the best model, use
    `ModelCheckpoint(monitor="gold/average", mode="max")`.

    Logged after each validation:

    | key | unit |
    |---|---|
    | `gold/NAME` | mean over prompts, in the scorer's unit |
    | `gold/average` | 1 = as good as the base, more is better |
    | `gold/average_low`, `gold/average_high` | ends of the interval, same unit |
    | `gold/proxy` | mean proxy reward over prompts, in its own unit, without failed ones |

    Loggers that take figures get `gold/figure`. The run's folder gets `gold.csv` (one row an evaluation),
    `gold.png`, and `gold/step_SSSSSSSS.npz` with `prompt` and each scorer's scores by prompt, (P,) each.

    Example:
        ```python
        from guardlit_callbacks import GoldScore
        from torchmetrics.multimodal import CLIPScore
        gold = GoldScore({"clip": CLIPScore("openai/clip-vit-base-patch16")}, metadata=None)
        Trainer(callbacks=[gold, ModelCheckpoint(monitor="gold/average", mode="max")])
        ```

    Args:
        scorers: name to scorer, or a list of scorers with names. A scorer is a torchmetrics `Metric` that is a
            mean over samples, with `update(images, prompts)` or `update(images)`, or any object with `setup(device)`
            and `score(request)`: the request has images (B, 3, height, width) uint8, prompts and metadata, the result
            `values` (B,) and `valid` (B,). A scorer with `close()` is closed at the end.
        images: key of the images, (B, 3, height, width) uint8.
        prompts: key of the prompts, B texts.
        metadata: key of B mappings for the scorers; None for empty ones.
        proxy: key of the proxy reward, (B,); None for none.
        index: key of each sample's index in the validation set, (B,); a sample that a distributed sampler repeats then
            counts once. None if there are no repeats.
        average: scorers in the average; all by default.
        base: scorer to the base model's mean; by default the evaluation at step 0.
        lower_is_better: scorers such as distances, which enter the average as base / score.
        resamples: of the bootstrap.

    Raises:
        ValueError: a name in `average`, `base` or `lower_is_better` is not a scorer's.
        MisconfigurationException: a key is not among the outputs; images are not uint8; a gold score failed (they are
            never dropped); the prompts differ from those of the base.
    """

    def __init__(
        self,
        scorers: Scorers,
        images: str = "images",
        prompts: str = "prompts",
        metadata: str | None = "metadata",
        proxy: str | None = "reward",
        index: str | None = None,
        average: list[str] | None = None,
        base: dict[str, float] | None = None,
        lower_is_better: list[str] | None = None,
        resamples: int = 1000,
    ) -> None:
        super().__init__()
        self.scorers = named(scorers)
        self.images, self.prompts, self.metadata, self.proxy, self.index = images, prompts, metadata, proxy, index
        self.average = list(self.scorers) if average is None else average
        self.base, self.lower_is_better, self.resamples = base, lower_is_better or [], resamples
        _check_names("average", self.average, self.scorers)
        _check_names("lower_is_better", self.lower_is_better, self.scorers)
        if base is not None:
            _check_names("base", base, self.scorers)
            _check_names("average", self.average, base, "has no value in base")
        self.history: list[dict[str, float]] = []
        self._base_scores: dict[str, Array] = {}
        self._base_prompts: list[str] = []
        self._open: set[str] = set()

    # --- collecting ----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets up the scorers that are not set up yet, or were closed since."""
        if not is_partial(trainer):
            for name in [name for name in self.scorers if name not in self._open]:
                self._open.add(name)
                set_up(self.scorers[name], pl_module.device)

    def collect(self, outputs: Any) -> list[Sample]:
        """Scores the batch's images."""
        images = read_output(outputs, self.images, self, "images")
        prompts = list(read_value(outputs, self.prompts, self, "prompts"))
        metadata = (
            [{}] * len(prompts) if self.metadata is None else read_value(outputs, self.metadata, self, "metadata")
        )
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(prompts):
            raise MisconfigurationException(
                f"GoldScore: the output {self.images!r} is {tuple(images.shape)} {images.dtype} for {len(prompts)} "
                f"prompts; it must be ({len(prompts)}, 3, height, width) uint8"
            )
        request = ScoreRequest(images, prompts, list(metadata))
        columns = {name: score(scorer, request) for name, scorer in self.scorers.items()}
        if self.proxy is not None:
            columns[PROXY] = _numpy(read_output(outputs, self.proxy, self, "proxy"))
        if self.index is not None:
            columns["index"] = _numpy(read_output(outputs, self.index, self, "index"))
        return [
            {"prompt": prompt, **{name: float(values[i]) for name, values in columns.items()}}
            for i, prompt in enumerate(prompts)
        ]

    # --- closing ------------------------------------------------------------------------------------------------

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Releases the scorers' processes and connections; the next validation sets them up again."""
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Releases them where Lightning calls no `teardown`."""
        self.close()

    def close(self) -> None:
        """Closes each scorer that was set up and has `close()`."""
        for name in [name for name in self.scorers if name in self._open and can_close(self.scorers[name])]:
            self._open.remove(name)
            try:
                self.scorers[name].close()
            except Exception as error:  # must not replace the run's own error
                rank_zero_warn(f"GoldScore: {name!r} could not be closed: {error}")

    # --- evaluating ----------------------------------------------------------------------------------------------

    def report(self, trainer: Trainer, pl_module: LightningModule, ranks: Sequence[Sequence[Sample]]) -> None:
        """Compares the scores with the base, logs and writes."""
        samples = [sample for rank in ranks for sample in rank]
        self._check_failed(samples)
        prompts, scores = _per_prompt(samples)
        step = trainer.global_step
        self._set_base(step, prompts, scores)
        interval = self._interval(scores)
        row = {name: float(np.mean(scores[name])) for name in self.scorers}
        row |= {"average": interval.value, "average_low": interval.low, "average_high": interval.high}
        if PROXY in scores and not np.all(np.isnan(scores[PROXY])):
            row[PROXY] = float(np.nanmean(scores[PROXY]))
        self.history = [*(old for old in self.history if old["step"] < step), {"step": step, **row}]

        log_validation(trainer, pl_module, {f"gold/{name}": value for name, value in row.items()})
        folder = run_dir(trainer)
        if trainer.is_global_zero:
            if folder:
                _write(folder, step, self.history, {"prompt": np.array(prompts), **scores})
            log_figure(trainer, "gold/figure", self._figure(), step, folder / "gold.png" if folder else None)

    def _check_failed(self, samples: list[Sample]) -> None:
        for name in self.scorers:
            failed = [sample["prompt"] for sample in samples if not np.isfinite(sample[name])]
            if failed:
                raise MisconfigurationException(
                    f"GoldScore: {name!r} failed on {len(failed)} of {len(samples)} images, first for the prompt "
                    f"{failed[0]!r}; gold scores are never dropped: fix the scorer or remove the prompt"
                )

    def _set_base(self, step: int, prompts: list[str], scores: Mapping[str, Array]) -> None:
        if step == 0:
            self.history, self._base_scores = [], {}
        if not self._base_scores:
            self._base_scores = {name: scores[name] for name in self.scorers}
            self._base_prompts = prompts
            if step and self.base is None:
                rank_zero_warn(
                    f"GoldScore: no evaluation at step 0, so scores are relative to the one at step {step}; run one "
                    "with Trainer(num_sanity_val_steps=-1), or give GoldScore(base=...)"
                )
        if prompts != self._base_prompts:
            raise MisconfigurationException(
                f"GoldScore: validation has {len(prompts)} prompts, not the {len(self._base_prompts)} of the base "
                "evaluation; validate on a fixed prompt set"
            )

    def _interval(self, scores: Mapping[str, Array]) -> Interval:
        above, below = {}, {}
        for name in self.average:
            base = self._base_scores[name] if self.base is None else np.full_like(scores[name], self.base[name])
            above[name], below[name] = (base, scores[name]) if name in self.lower_is_better else (scores[name], base)
        return bootstrap(above, below, n=self.resamples)

    def _figure(self) -> Any:
        columns = {name: np.array([row.get(name, np.nan) for row in self.history]) for name in self.history[-1]}
        interval = (columns["average"], columns["average_low"], columns["average_high"])
        return proxy_gold_figure({"run": ProxyGoldCurve(columns["step"], columns.get(PROXY), *interval)})

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far and the base scores by prompt; equal on every rank."""
        base = {name: torch.from_numpy(values) for name, values in self._base_scores.items()}
        return {"history": self.history, "base_scores": base, "base_prompts": self._base_prompts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the evaluations and the base."""
        self.history, self._base_prompts = list(state_dict["history"]), list(state_dict["base_prompts"])
        self._base_scores = {name: values.numpy() for name, values in state_dict["base_scores"].items()}


def _numpy(values: Tensor) -> Array:
    return values.double().cpu().numpy()


def _check_names(argument: str, names: Any, scorers: Any, what: str = "is not a scorer") -> None:
    if unknown := [name for name in names if name not in scorers]:
        raise ValueError(f"GoldScore: {argument} {unknown[0]!r} {what}; there are {', '.join(map(repr, scorers))}")


def _per_prompt(samples: list[Sample]) -> tuple[list[str], dict[str, Array]]:
    """Prompts in alphabetical order and each column's mean per prompt; each sample index counts once."""
    samples = list({sample.get("index", ("no index", i)): sample for i, sample in enumerate(samples)}.values())
    by_prompt: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: (s["prompt"], s.get("index", 0))):
        by_prompt.setdefault(sample["prompt"], []).append(sample)
    names = [name for name in samples[0] if name not in ("prompt", "index")]
    means = {name: np.array([np.mean([s[name] for s in group]) for group in by_prompt.values()]) for name in names}
    return list(by_prompt), means


def _write(folder: Path, step: int, history: list[dict[str, float]], arrays: Mapping[str, Array]) -> None:
    path = folder / "gold" / f"step_{step:08d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    with (folder / "gold.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[-1]), restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(history)
