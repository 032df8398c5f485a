"""The loader whose epoch is one RL round, and what it asks of the module that trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from guardlit.policies.base import FlowPolicy
from guardlit.processes.world import World
from guardlit.rounds.experience import Experience
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.round import Round
from guardlit.rounds.settings import Rollout
from guardlit.types import Conditioning, Prompt, Transition


class RoundRunner(Protocol):
    """A LightningModule that draws rounds and trains on them."""

    policy: FlowPolicy
    rollout: Rollout

    def check_prompt(self, prompt: Prompt) -> None:
        """Raise `GuardlitError` for a prompt that the reward can never score."""

    def largest_micro_batch(self, sizes: Sequence[int], conditioning: Conditioning) -> int:
        """The first of falling sizes that fits into memory on every rank. Collective: every rank must call it."""

    def collect(self, round: Round, batch_size: int) -> Experience:
        """Draw and score a round. Collective: every rank must call it."""

    def restore_experience(self, state: Mapping[str, Any], round: Round) -> Experience:
        """A round in progress from a checkpoint. Collective: every rank must call it."""


class Rounds(Protocol):
    """The rounds of a run, by index."""

    plan: RoundPlan
    seed: int

    @property
    def rollout_batch(self) -> int:
        """Images that a rank samples at once."""

    def round(self, index: int) -> Round:
        """A round before it is drawn."""


class ExperienceLoader:
    """A sized, lazy loader: each pass over it is one round, collected when the pass begins.

    Its length is known before a round is collected, so that Lightning prefetches nothing.

    Args:
        rounds: what to collect.
        runner: collects it.
        world: the ranks, for a checkpoint within a round.
    """

    def __init__(self, rounds: Rounds, runner: RoundRunner, world: World) -> None:
        self._rounds, self._runner, self._world = rounds, runner, world
        self.round_index = 0
        self.position = 0
        self._experience: Experience | None = None
        self._resuming: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return self._rounds.plan.micro_batches

    def __iter__(self) -> Iterator[Transition]:
        if self._resuming is None and self._experience is not None:  # the Trainer cut the last pass short
            self._next_round()
        return self._micro_batches()

    def _next_round(self) -> None:
        self.round_index += 1
        self.position, self._experience = 0, None

    def _micro_batches(self) -> Iterator[Transition]:
        if self._experience is None:
            self._experience = self._begin()
        experience = self._experience
        batches = self._rounds.plan.passes(self._rounds.seed, self.round_index)
        while self.position < len(batches):
            rows, slots = batches[self.position]
            micro_batch = experience.take(rows, slots)
            self.position += 1
            if self.position == len(batches):
                # before the last yield: a checkpoint at the round's end is small and starts the next round
                self._next_round()
                yield micro_batch
                return
            yield micro_batch

    def _begin(self) -> Experience:
        round = self._rounds.round(self.round_index)
        if self._resuming is None:
            return self._runner.collect(round, self._rounds.rollout_batch)
        experience = self._runner.restore_experience(self._resuming, round)
        self._resuming = None  # and not before: a checkpoint may be written meanwhile
        return experience

    def state(self) -> dict[str, Any]:
        """Round and position, and the experience of a round in progress. Collective: every rank must call it."""
        # counted in transitions of all ranks, whose order does not depend on the world size
        plan = self._rounds.plan
        state: dict[str, Any] = {"round": self.round_index, "transitions": self.position * plan.stride}
        state["micro_batch"] = plan.micro_batch
        if self._experience is not None:
            state["experience"] = self._experience.state(self._world.gather_on_first)
        elif self._resuming is not None:
            state["experience"] = self._resuming
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`."""
        self.round_index, self.position = state["round"], self._rounds.plan.position(state["transitions"])
        self._resuming = state.get("experience")
