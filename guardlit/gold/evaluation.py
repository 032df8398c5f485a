"""`guardlit evaluate` from end to end: draw, score, print and write the table."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.cli import SaveConfigCallback

from guardlit.config.saved import SECTIONS, sections
from guardlit.data.prompts import given_prompts, load_prompts
from guardlit.errors import GuardlitError
from guardlit.gold.drawing import Drawn, draw, missing_batches, only, say
from guardlit.gold.models import Weights, find_models, with_base_steps
from guardlit.gold.pictures import Picture
from guardlit.gold.scores import ScoreCache, Scoring
from guardlit.gold.settings import AVERAGE, Gold
from guardlit.gold.statistics import Array, Bootstrap, averages, columns_of, estimates
from guardlit.gold.table import Table, print_table, write_table
from guardlit.training.limits.settings import check_precision
from guardlit.training.run_folder import versions
from guardlit.types import Prompt

if TYPE_CHECKING:
    from guardlit.data.datamodule import PromptDataModule
    from guardlit.training.module import GRPOModule

RUN, GOLD = "run.yaml", "gold.yaml"
"""The configuration in the output folder. --rescore reads the first, and the second if no other is given."""


class Evaluation:
    """One call of `guardlit evaluate`.

    Args:
        trainer: has devices, precision and world size.
        module: policy and evaluation settings; of the reward, only the name is used.
        gold: what is measured.
        out: the output folder, which all ranks must see.
    """

    def __init__(self, trainer: pl.Trainer, module: GRPOModule, gold: Gold, out: Path) -> None:
        self._trainer, self._module, self._gold, self._out = trainer, module, gold, out
        check_precision(str(trainer.precision))

    # drawing ------------------------------------------------------------------------------------------------------

    def draw(
        self,
        data: PromptDataModule,
        paths: Sequence[str],
        labels: Sequence[str],
        weights: Weights,
        prompts: list[str] | str | None,
        images_per_prompt: int | None,
        base_steps: Sequence[int] = (),
    ) -> Drawn:
        """Draw the images that the output folder lacks; raises `GuardlitError` for unusable models or prompts."""
        models = find_models(paths, labels, weights, Path(self._trainer.default_root_dir))
        models = with_base_steps(models, base_steps, self._module.evaluation)
        count = data.val_images if images_per_prompt is None else images_per_prompt
        if count < 1:
            raise GuardlitError(f"images_per_prompt={count} must be at least 1")
        rows = self._prompts(data, prompts)
        self._check_prompts(rows, count)
        sampling = {
            **self._module.policy.source(),
            **{name: value for name, value in asdict(self._module.evaluation).items() if name != "base_steps"},
            "sampler": "ODE",
            "noise": "that of guardlit validate",
            "precision": str(self._trainer.precision),
        }
        facts = {"prompts": prompts or data.val_source, "command": ["guardlit", *sys.argv[1:]], "versions": versions()}
        drawn = Drawn(models, rows, count, sampling, facts)
        if self._trainer.is_global_zero:
            self._begin(drawn)
        missing = missing_batches(drawn, data.rollout_batch, self._out)
        if any(missing.values()):
            self._load_scorers()
            draw(self._trainer, self._module, drawn, missing, self._out)
        number = sum(len(batch) for batches in missing.values() for batch in batches)
        say(self._trainer, f"images: {number} drawn, {len(models) * len(drawn.images)} in all")
        return drawn

    @staticmethod
    def _prompts(data: PromptDataModule, given: list[str] | str | None) -> list[Prompt]:
        if given:
            return given_prompts("--prompts", given)
        if not data.val_source:
            raise GuardlitError("evaluate needs --prompts, or a configuration with data.val")
        return list(load_prompts(data.val_source, limit=data.val_limit))

    def _load_scorers(self) -> None:
        """Fail on missing weights now, and not after hours of drawing."""
        if self._trainer.is_global_zero:
            for scorer in self._gold.scorers.values():
                scorer.setup(torch.device("cpu"))
                scorer.close()

    def _check_prompts(self, prompts: Sequence[Prompt], images_per_prompt: int) -> None:
        """Refuse prompts whose images cannot be scored."""
        for column, scorer in self._gold.scorers.items():
            if scorer.compares_images and images_per_prompt < 2:
                raise GuardlitError(
                    f"gold scorer '{column}' compares the images of a prompt: images_per_prompt must be at least 2, it "
                    f"is {images_per_prompt}"
                )
            for prompt in prompts:
                if why := scorer.refusal(prompt, f"gold scorer '{column}'"):
                    raise GuardlitError(why)

    def _begin(self, drawn: Drawn) -> None:
        """Write what is going to be drawn, so that an interrupted evaluation can be scored, too."""
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            drawn.write(self._out)
            for saver in (c for c in self._trainer.callbacks if isinstance(c, SaveConfigCallback)):  # type: ignore[attr-defined]
                for name, keys in ((RUN, SECTIONS), (GOLD, ("gold",))):
                    (self._out / name).write_text(sections(saver, keys), encoding="utf-8")
        except OSError as error:
            raise GuardlitError(f"output folder {self._out} cannot be written: {error.strerror or error}") from error

    # scoring ------------------------------------------------------------------------------------------------------

    def score(self, drawn: Drawn) -> None:
        """Score the images that have no scores, print the table and write it.

        Raises:
            GuardlitError: a score failed, since gold scores are never dropped; or no Average can be formed.
        """
        self._check_prompts(drawn.prompts, drawn.images_per_prompt)
        cache = ScoreCache(self._out / "scores.sqlite")
        if self._trainer.is_global_zero:
            cache.check()
        sets = [drawn.pictures(self._out, model) for model in drawn.models]
        scoring = Scoring(self._gold.scorers, sets, len(drawn.prompts), cache)
        try:
            with only(self._trainer, [], "scoring"):
                self._trainer.predict(scoring, return_predictions=False)
            self._trainer.strategy.barrier()
            say(self._trainer, f"scores: {scoring.asked} computed, {len(drawn.images) * self._numbers(drawn)} in all")
            scores = self._collect(drawn, sets, scoring, cache)
            table = self._table(drawn, scores, [[picture.path for picture in pictures] for pictures in sets])
            if self._trainer.is_global_zero:
                print_table(table)
                for path in write_table(table, self._provenance(drawn), self._out):
                    print(path)
        finally:
            for scorer in self._gold.scorers.values():
                scorer.close()
        if table.no_average:
            raise GuardlitError(f"no Average: {table.no_average}; the other columns are in {self._out / 'table.md'}")

    def _numbers(self, drawn: Drawn) -> int:
        return len(drawn.models) * len(self._gold.scorers)

    def _collect(
        self, drawn: Drawn, sets: Sequence[Sequence[Picture]], scoring: Scoring, cache: ScoreCache
    ) -> list[dict[str, Array]]:
        """Each model's scores by column, (K x P,)."""
        collected: list[dict[str, Array]] = [{} for _ in drawn.models]
        failed: list[str] = []
        for column, keys_of_models in scoring.keys.items():
            for model, pictures, keys, scores in zip(drawn.models, sets, keys_of_models, collected, strict=True):
                known = cache.get(keys)
                bad = [p for p, key in zip(pictures, keys, strict=True) if key not in known]
                if bad:
                    failed.append(
                        f"'{column}' failed on {len(bad)} of {len(keys)} images of '{model.label}', first for the "
                        f"prompt '{bad[0].prompt.text[:80]}' ({bad[0].path})"
                    )
                    continue
                scores[column] = np.array([known[key] for key in keys])
        if failed:
            more = f", and {len(failed) - 1} more such failures" if failed[1:] else ""
            raise GuardlitError(
                f"gold scorer {failed[0]}{more}; gold scores are never dropped: fix the scorer or remove the "
                "prompt; finished scores are kept"
            )
        return collected

    def _table(self, drawn: Drawn, scores: list[dict[str, Array]], files: list[list[Path]]) -> Table:
        prompts = len(drawn.prompts)
        means = [{c: v.reshape(-1, prompts).mean(axis=0) for c, v in model.items()} for model in scores]
        tasks = {c: [s.task(p.metadata) for p in drawn.prompts] for c, s in self._gold.scorers.items()}
        columns = {name: column for c, t in tasks.items() for name, column in columns_of(c, t).items()}
        bootstrap = Bootstrap(list(zip(*tasks.values(), strict=True)), self._gold.resamples)
        rows = estimates(means, columns, bootstrap)
        reason = ""
        try:
            of = {name: columns[name] for name in self._gold.average or []}
            for row, average in zip(rows, averages(means, of, self._gold.lower_is_better, bootstrap), strict=True):
                row[AVERAGE] = average
        except ValueError as error:
            reason = str(error)
        reward = self._module.reward
        trained = {reward.name, *(name for name, term in reward.terms.items() if term.trained)}
        return Table(drawn, self._gold, rows, scores, files, frozenset(trained), reason)

    def _provenance(self, drawn: Drawn) -> dict[str, Any]:
        return {
            "command": ["guardlit", *sys.argv[1:]],
            "scorers": {
                column: {"class": f"{type(s).__module__}.{type(s).__qualname__}", **s.provenance}
                for column, s in self._gold.scorers.items()
            },
            "prompts": {
                "source": drawn.facts.get("prompts"),
                "sha256": drawn.prompts_sha256,
                "count": len(drawn.prompts),
                "images_per_prompt": drawn.images_per_prompt,
            },
            "sampling": drawn.sampling,
            "drawn_by": {key: drawn.facts.get(key) for key in ("command", "versions")},
            "versions": versions(),
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "processes": self._trainer.world_size,
        }
