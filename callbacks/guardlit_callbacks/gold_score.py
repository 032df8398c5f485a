"""Gold scores: evaluated during training, never trained on (Fig. 1)."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guardlit_callbacks.bases.validation import ValidationCallback, is_partial, log_validation
from guardlit_callbacks.composite import Interval, bootstrap
from guardlit_callbacks.figures.proxy_gold import ProxyGoldCurve, first_spread, proxy_gold_figure
from guardlit_callbacks.gold_by_prompt import (
    Kept,
    Sample,
    add_scores,
    distinct_samples,
    means_by_prompt,
    score_by_prompt,
)
from guardlit_callbacks.gold_frontier import LiveFrontier
from guardlit_callbacks.tools.folders import run_dir
from guardlit_callbacks.tools.images import check_range, read_images
from guardlit_callbacks.tools.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from guardlit_callbacks.tools.logging import log_figure
from guardlit_callbacks.tools.outputs import read_column, read_mappings, read_texts
from guardlit_callbacks.tools.scoring import ScoreRequest, Scorers, can_close, compares_images, named, score, set_up
from guardlit_callbacks.tools.statistics import Array

PROXY, METADATA = "proxy", "metadata"


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
    | `gold/average_low`, `gold/average_high` | ends of the 95 % interval of `gold/average` |
    | `gold/proxy` | mean proxy reward over prompts, in its own unit, without failed ones |
    | `gold/proxy_std` | standard deviation of the proxy reward over images, in its own unit |

    Loggers that take figures get `gold/figure` and, from the second evaluation on, `gold/frontier`: gold against the
    proxy and, where it is logged, against the distance from the base. The run's folder gets `gold.csv` (one row an
    evaluation), `gold.json` (how the Average is made), `gold.png`, and `gold/step_SSSSSSSS.npz` with `prompt` and each
    scorer's scores by prompt, (P,) each.

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
            is one number per image or has `values` (B,) and `valid` (B,). A scorer with `close()` is closed at the
            end. One with a true attribute `compares_images` gets all images of a prompt in one request.
        images: key of the images, (B, 3, height, width) uint8, or floats in `value_range`.
        prompts: key of the prompts, B texts.
        metadata: key of B mappings for the scorers; empty ones for None, and where the default key is not returned.
        proxy: key of the proxy reward, (B,); None for none.
        index: key of each sample's index in the validation set, (B,); a sample that a distributed sampler repeats then
            counts once. None if there are no repeats.
        average: scorers in the average; all by default.
        base: scorer to the base model's mean; by default the evaluation at step 0.
        lower_is_better: scorers such as distances, which enter the average as base / score.
        resamples: of the bootstrap.
        value_range: of float images, [0, 1] or [-1, 1].
        dataloader: index of the validation dataloader to read, where there are several.
        distance: logged key of the distance from the base, as `KLFromBase` logs it, for `gold/frontier`; None for none.

    Raises:
        ValueError: a name in `average`, `base` or `lower_is_better` is not a scorer's; another `value_range`.
        MisconfigurationException: the module has no `validation_step`; a key is not among the outputs, or holds
            something else; a scorer did not return one number per image; a gold score failed (they are never dropped);
            the prompts differ from those of the base; a base score in the average is not positive; several validation
            dataloaders without `dataloader`.
    """

    def __init__(
        self,
        scorers: Scorers,
        images: str = "images",
        prompts: str = "prompts",
        metadata: str | None = METADATA,
        proxy: str | None = "reward",
        index: str | None = None,
        average: list[str] | None = None,
        base: dict[str, float] | None = None,
        lower_is_better: list[str] | None = None,
        resamples: int = 1000,
        value_range: tuple[float, float] = (0.0, 1.0),
        dataloader: int | None = None,
        distance: str | None = "kl/sqrt_from_base",
    ) -> None:
        super().__init__(dataloader)
        self.value_range = check_range(value_range, self)
        self.scorers = named(scorers)
        self._comparing = {name: scorer for name, scorer in self.scorers.items() if compares_images(scorer)}
        self._kept: list[Kept] = []  # this rank's images, where a scorer compares them
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
        self._frontier = LiveFrontier(distance)

    # --- collecting ----------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets up the scorers that are not set up yet, or were closed since."""
        self._kept = []
        if not is_partial(trainer):
            for name in [name for name in self.scorers if name not in self._open]:
                self._open.add(name)
                set_up(self.scorers[name], pl_module.device)

    def collect(self, outputs: Any) -> list[Sample]:
        """Scores the batch's images."""
        images = read_images(outputs, self.images, self, self.value_range)
        count = len(images)
        prompts = read_texts(outputs, self.prompts, self, "prompts", count)
        request = ScoreRequest(images, prompts, self._metadata(outputs, count))
        samples: list[Sample] = [{"prompt": prompt} for prompt in prompts]
        for name, scorer in self.scorers.items():
            if name not in self._comparing:
                add_scores(samples, name, *score(scorer, name, request))
        for column, argument, key in ((PROXY, "proxy", self.proxy), ("index", "index", self.index)):
            if key is not None:
                add_scores(samples, column, read_column(outputs, key, self, argument, count).double().cpu().numpy())
        if self._comparing:
            self._kept += zip(images.cpu(), request.metadata, strict=True)
        return samples

    def _metadata(self, outputs: Any, count: int) -> list[Mapping[str, Any]]:
        """Empty mappings where there is no key; the default key need not be among the outputs."""
        missing = self.metadata == METADATA and METADATA not in outputs
        if self.metadata is None or missing:
            return [{}] * count
        return read_mappings(outputs, self.metadata, self, "metadata", count)

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
        samples, kept, self._kept = distinct_samples(ranks), self._kept, []
        score_by_prompt(self._comparing, samples, kept, trainer.global_rank, pl_module.device)
        self._check_failed(samples)
        prompts, scores = means_by_prompt(samples)
        step = trainer.global_step
        self._set_base(step, prompts, scores)
        interval = self._interval(scores)
        row = {name: float(np.mean(scores[name])) for name in self.scorers}
        row |= {"average": interval.value, "average_low": interval.low, "average_high": interval.high}
        if PROXY in scores and not np.all(np.isnan(scores[PROXY])):
            row[PROXY] = float(np.nanmean(scores[PROXY]))
            row[f"{PROXY}_std"] = float(np.nanstd([sample[PROXY] for sample in samples]))
        self.history = [*(old for old in self.history if old["step"] < step), {"step": step, **row}]

        log_validation(trainer, pl_module, {f"gold/{name}": value for name, value in row.items()})
        folder = run_dir(trainer)
        if trainer.is_global_zero:
            if folder:
                _write(folder, step, self.history, {"prompt": np.array(prompts), **scores})
                _write_definition(folder, self.average, self.lower_is_better, self.base)
            log_figure(trainer, "gold/figure", self._figure(), step, folder / "gold.png" if folder else None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the frontier, after all callbacks have logged the validation."""
        if not is_partial(trainer) and self.history and self.history[-1]["step"] == trainer.global_step:
            self._frontier.log(trainer, self.history)

    def _check_failed(self, samples: list[Sample]) -> None:
        for name in self.scorers:
            failed = [sample for sample in samples if not np.isfinite(sample[name])]
            if failed:
                reason = failed[0].get("reasons", {}).get(name, "")
                raise MisconfigurationException(
                    f"GoldScore: {name!r} failed on {len(failed)} of {len(samples)} images, first for the prompt "
                    f"{failed[0]['prompt']!r}{f' ({reason})' if reason else ''}; gold scores are never dropped: fix "
                    "the scorer or remove the prompt"
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
        try:
            return bootstrap(above, below, n=self.resamples)
        except ValueError as error:
            raise MisconfigurationException(f"GoldScore(average={self.average}): {error}") from error

    def _figure(self) -> Any:
        columns = {name: np.array([row.get(name, np.nan) for row in self.history]) for name in self.history[-1]}
        interval = (columns["average"], columns["average_low"], columns["average_high"])
        spread = first_spread(columns.get(f"{PROXY}_std", np.zeros(0)))
        return proxy_gold_figure({"run": ProxyGoldCurve(columns["step"], columns.get(PROXY), *interval, spread)})

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far and the base scores by prompt; equal on every rank."""
        base = {name: torch.from_numpy(values) for name, values in self._base_scores.items()}
        scores = {"history": self.history, "base_scores": base, "base_prompts": self._base_prompts}
        return scores | self._frontier.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the evaluations and the base."""
        self.history, self._base_prompts = list(state_dict["history"]), list(state_dict["base_prompts"])
        self._base_scores = {name: values.numpy() for name, values in state_dict["base_scores"].items()}
        self._frontier.load_state_dict(state_dict)


def _check_names(argument: str, names: Any, scorers: Any, what: str = "is not a scorer") -> None:
    if unknown := [name for name in names if name not in scorers]:
        raise ValueError(f"GoldScore: {argument} {unknown[0]!r} {what}; there are {', '.join(map(repr, scorers))}")


def _write(folder: Path, step: int, history: list[dict[str, float]], arrays: Mapping[str, Array]) -> None:
    path = folder / "gold" / f"step_{step:08d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    with (folder / "gold.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(history[-1]), restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(history)


def _write_definition(
    folder: Path, average: list[str], lower_is_better: list[str], base: Mapping[str, float] | None
) -> None:
    """Writes how the Average is made, so that others can compute it from the scores by prompt."""
    definition = {"average": average, "lower_is_better": lower_is_better, "base": base}
    (folder / "gold.json").write_text(json.dumps(definition) + "\n", encoding="utf-8")
