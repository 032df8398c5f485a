"""The reward of a run: made ready, tested before anything is drawn, asked in validation, closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from guardlit_callbacks.distributed.gather import gather_objects
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.processes.collectives import raise_on_all
from guardlit.rewards.base import Scorer
from guardlit.types import Prompt, RewardRequest, RewardResult

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule

RTOL, ATOL = 1e-3, 1e-5
"""Between the start-up scores of two processes: rounding of float32 networks on unlike hardware passes."""


class RewardRunner:
    """Keeps a module's reward; where one process finds a mistake, all of them raise it.

    Args:
        module: with its reward.
    """

    def __init__(self, module: GRPOModule) -> None:
        self._module = module
        self._device: torch.device | None = None
        self._failure: GuardlitError | None = None
        self.tested: dict[str, list[float]] = {}
        """Raw scores of the two images of the start-up test, by scorer."""

    def ready(self) -> Scorer:
        """The reward with its weights on the module's device."""
        if self._device != self._module.device:
            self._module.reward.setup(self._module.device)
            self._device = self._module.device
        return self._module.reward

    def close(self) -> None:
        """Give back the reward's processes and connections; `ready` takes them again."""
        if self._device is None:
            return
        self._device = None
        try:
            self._module.reward.close()
        except Exception as error:  # must hide neither why a run ends nor that it is done
            rank_zero_warn(f"reward '{self._module.reward.name}' could not be closed: {error}")

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise `GuardlitError` for a prompt that the reward can never score."""
        try:
            self._module.reward.check_prompt(prompt.text, prompt.metadata)
        except ValueError as error:
            raise GuardlitError(str(error)) from error

    # before anything is drawn -------------------------------------------------------------------------------------

    def test(self, prompts: Sequence[Prompt]) -> None:
        """Make the reward ready and test each of its terms; raises `GuardlitError` on all processes."""
        try:
            self._agreed(self.ready)
            self._test_each(self._module.reward.terms(), prompts)
        except BaseException:
            self.close()
            raise

    def test_validation(self) -> None:
        """The same before a validation, and for what callbacks such as `GoldScore` have set up by now."""
        prompts = [prompt for _, prompt in getattr(self._module.trainer.val_dataloaders, "dataset", [])]
        self.test(prompts)
        if not self._module.trainer.sanity_checking:
            gold = gold_scorers(self._module.trainer)
            self._test_each({f"gold/{name}": scorer for name, scorer in gold.items()}, prompts)

    def _test_each(self, scorers: Mapping[str, Scorer], prompts: Sequence[Prompt]) -> None:
        new = {name: scorer for name, scorer in scorers.items() if name not in self.tested}
        prompts = gather_objects(prompts)[0] if new else []  # each process validates prompts of its own
        for name, scorer in new.items():
            self._agreed(partial(self._test_one, name, scorer, prompts))
            compare(name, gather_objects(self.tested[name]))

    def _test_one(self, name: str, scorer: Scorer, prompts: Sequence[Prompt]) -> None:
        self.tested[name] = scorer.self_test(prompts).tolist()

    def _agreed(self, act: Callable[[], object]) -> None:
        error = None
        try:
            act()
        except GuardlitError as mistake:
            error = mistake
        raise_on_all(self._module.trainer, error)

    # validation ---------------------------------------------------------------------------------------------------

    def validate(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardResult:
        """Score validation images, (B, 3, height, width) uint8; a failure is never dropped.

        Raises:
            GuardlitError: naming the prompt and the reason; of several processes, all raise it in `end_validation`,
                since they may have unequal numbers of batches.
        """
        request = RewardRequest(images, [p.text for p in prompts], [p.metadata for p in prompts])
        nothing = RewardResult.from_values(torch.full((len(request),), torch.nan))
        if self._failure is not None:  # of this batch's drawing, or of an earlier one
            self._raise_alone()
            return nothing
        try:
            with torch.autocast(self._module.device.type, enabled=False):
                result = self.ready().attempt(request)
        except GuardlitError as mistake:
            self._failure, result = mistake, nothing
        if self._failure is None and not bool(result.valid.all()):
            first = request.prompts[int((~result.valid).nonzero()[0])]
            where = f"reward '{self._module.reward.name}' failed in validation, first on prompt '{first[:80]}'"
            self._failure = GuardlitError(f"{where}; {result.reason}")
        self._raise_alone()
        return result

    def fail(self, error: GuardlitError) -> None:
        """End a validation on all processes, since this one cannot draw an image; anything else at once."""
        if not self._module.trainer.validating:
            raise error
        self._failure = self._failure or error

    def _raise_alone(self) -> None:
        if self._module.trainer.world_size == 1:
            self.end_validation()

    def end_validation(self) -> None:
        """Raise on all processes what one of them met."""
        failure, self._failure = self._failure, None
        raise_on_all(self._module.trainer, failure)


def gold_scorers(trainer: pl.Trainer) -> dict[str, Scorer]:
    """The scorers that callbacks hold as `scorers`, by name; torchmetrics are no such scorers."""
    held = [getattr(callback, "scorers", {}) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return {name: s for scorers in held for name, s in scorers.items() if isinstance(s, Scorer)}


def compare(name: str, scores: Sequence[Sequence[float]]) -> None:
    """Raise `GuardlitError` where a process's start-up scores of a scorer are not those of process 0."""
    for rank, mine in enumerate(scores):
        if not torch.allclose(torch.tensor(mine), torch.tensor(scores[0]), RTOL, ATOL):
            said, first = (", ".join(f"{v:g}" for v in values) for values in (mine, scores[0]))
            raise GuardlitError(
                f"reward '{name}' is not the same on all processes: process {rank} scores the start-up images {said}, "
                f"process 0 {first}; give all of them the same weights and versions"
            )
