"""Owns the life cycle of a run's reward: setup, start-up test, validation, close. Errors are raised on every rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.processes.world import World
from guardlit.rewards.base import Scorer
from guardlit.rewards.reward import Reward
from guardlit.types import Prompt, RewardRequest, RewardResult

RTOL, ATOL = 1e-3, 1e-5
"""Between the start-up scores of two ranks: wide enough for the rounding of float32 networks on different hardware."""


class RewardRunner:
    """Sets up, tests, asks and closes a reward.

    Args:
        reward: of the run.
        world: the ranks; the reward's weights go to its device.
    """

    def __init__(self, reward: Reward, world: World) -> None:
        self._reward, self._world = reward, world
        self._open = False
        self._failure: GuardlitError | None = None
        self.tested: dict[str, list[float]] = {}
        """Raw scores of the two images of the start-up test, by scorer."""

    def ready(self) -> Reward:
        """The reward, set up on this rank's device."""
        if not self._open:
            self._open = True
            try:
                self._reward.setup(self._world.device)
            except BaseException:
                self.close()  # some terms may be set up already
                raise
        return self._reward

    def close(self) -> None:
        """Release the reward's processes and connections; `ready` opens them again."""
        if not self._open:
            return
        self._open = False
        try:
            self._reward.close()
        except Exception as error:  # must not hide the error that ends the run
            rank_zero_warn(f"reward '{self._reward.name}' could not be closed: {error}")

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise `GuardlitError` for a prompt that the reward can never score."""
        if why := self._reward.refusal(prompt):
            raise GuardlitError(why)

    # before anything is drawn -------------------------------------------------------------------------------------

    def test(self, prompts: Sequence[Prompt], gold: Mapping[str, Scorer] | None = None) -> None:
        """Set up the reward; test each of its terms, and gold scorers, once. Collective: every rank must call it.

        Args:
            prompts: of this rank; every rank tests a scorer with the first one that it accepts on rank 0.
            gold: scorers that are set up already, by name.

        Raises:
            GuardlitError: a scorer does not work, or gives other scores on another rank; on every rank.
        """
        try:
            self._on_all_ranks(self.ready)
            self._test_each({name: term.scorer for name, term in self._reward.terms.items()}, prompts)
        except BaseException:
            self.close()
            raise
        self._test_each({f"gold/{name}": scorer for name, scorer in (gold or {}).items()}, prompts)

    def _test_each(self, scorers: Mapping[str, Scorer], prompts: Sequence[Prompt]) -> None:
        new = {name: scorer for name, scorer in scorers.items() if name not in self.tested}
        for name, scorer in new.items():
            mine = next((prompt for prompt in prompts if scorer.accepts(prompt)), None)
            first = self._world.gather_objects(mine)[0]  # ranks validate different prompts
            self._on_all_ranks(partial(self._test_one, name, scorer, prompts if first is None else [first]))
            compare(name, self._world.gather_objects(self.tested[name]))

    def _test_one(self, name: str, scorer: Scorer, prompts: Sequence[Prompt]) -> None:
        self.tested[name] = scorer.self_test(prompts).tolist()

    def _on_all_ranks(self, act: Callable[[], object]) -> None:
        error = None
        try:
            act()
        except GuardlitError as mistake:
            error = mistake
        self._world.raise_on_all(error)

    # validation ---------------------------------------------------------------------------------------------------

    def validate(self, images: Tensor, prompts: Sequence[Prompt]) -> RewardResult:
        """Score validation images, (B, 3, height, width) uint8; a failure is never dropped.

        Raises:
            GuardlitError: naming the prompt and the reason. With several ranks it is raised on all of them in
                `end_validation`, since ranks may have different numbers of batches.
        """
        request = RewardRequest(images, [p.text for p in prompts], [p.metadata for p in prompts])
        nothing = RewardResult.from_values(torch.full((len(request),), torch.nan))
        if self._failure is not None:  # of drawing this batch, or of an earlier one
            self._raise_alone()
            return nothing
        try:
            with torch.autocast(self._world.device.type, enabled=False):
                result = self.ready().score(request)
        except GuardlitError as mistake:
            self._failure, result = mistake, nothing
        if self._failure is None and not bool(result.valid.all()):
            first = request.prompts[int((~result.valid).nonzero()[0])]
            where = f"reward '{self._reward.name}' failed in validation, first on prompt '{first[:80]}'"
            self._failure = GuardlitError(f"{where}; {result.reason}")
        self._raise_alone()
        return result

    def fail(self, error: GuardlitError, deferred: bool) -> None:
        """Report that an image could not be drawn.

        Args:
            error: raised at once, unless `deferred`.
            deferred: whether this is a validation, whose errors are raised on every rank in `end_validation`.
        """
        if not deferred:
            raise error
        self._failure = self._failure or error

    def _raise_alone(self) -> None:
        if self._world.size == 1:
            self.end_validation()

    def end_validation(self) -> None:
        """Raise the first failure of a validation. Collective: every rank must call it."""
        failure, self._failure = self._failure, None
        self._world.raise_on_all(failure)


def gold_scorers(callbacks: Iterable[object]) -> dict[str, Scorer]:
    """The scorers that callbacks hold as `scorers`, by name; torchmetrics are left out."""
    held = [getattr(callback, "scorers", {}) for callback in callbacks]
    return {name: s for scorers in held for name, s in scorers.items() if isinstance(s, Scorer)}


def compare(name: str, scores: Sequence[Sequence[float]]) -> None:
    """Raise `GuardlitError` where the start-up scores of a rank differ from those of rank 0."""
    for rank, mine in enumerate(scores):
        if not torch.allclose(torch.tensor(mine), torch.tensor(scores[0]), RTOL, ATOL):
            said, first = (", ".join(f"{v:g}" for v in values) for values in (mine, scores[0]))
            raise GuardlitError(
                f"reward '{name}' is not the same on all ranks: rank {rank} scores the start-up images {said}, "
                f"rank 0 {first}; give every rank the same weights and versions"
            )
