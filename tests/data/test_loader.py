"""The loader of rounds, on a runner that draws nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from guardlit.data.loader import ExperienceLoader
from guardlit.errors import GuardlitError
from guardlit.processes.world import World
from guardlit.rounds.plan import RoundPlan

PLAN = RoundPlan(2, 4, 2, 1, micro_batch=4, train_steps=3)  # 6 micro-batches of 4 transitions


@dataclass
class FakeExperience:
    index: int
    restored: bool = False

    def take(self, rows: Sequence[int], slots: Sequence[int]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        return self.index, tuple(rows), tuple(slots)

    def state(self, collect: Callable[[str], list[str]]) -> dict[str, Any]:
        return {"latents": collect(f"of round {self.index}")}


@dataclass
class Runner:
    calls: list[tuple[str, int]] = field(default_factory=list)

    def collect(self, round: Any, batch_size: int) -> FakeExperience:
        assert batch_size == 8
        self.calls.append(("collect", round.index))
        return FakeExperience(round.index)

    def restore_experience(self, state: Mapping[str, Any], round: Any) -> FakeExperience:
        assert state["latents"] == [f"of round {round.index}"]
        self.calls.append(("restore", round.index))
        return FakeExperience(round.index, restored=True)


def loader_of(runner: Runner, plan: RoundPlan = PLAN) -> ExperienceLoader:
    rounds = SimpleNamespace(plan=plan, seed=7, rollout_batch=8, round=lambda index: SimpleNamespace(index=index))
    return ExperienceLoader(rounds, runner, World.single())


def test_an_epoch_is_a_round_that_is_collected_when_it_begins():
    runner = Runner()
    loader = loader_of(runner)
    assert len(loader) == 6
    epoch = iter(loader)
    assert runner.calls == []
    assert [*epoch, *loader] == [(k, tuple(rows), tuple(s)) for k in (0, 1) for rows, s in PLAN.passes(7, k)]
    assert runner.calls == [("collect", 0), ("collect", 1)]


def test_a_checkpoint_at_the_end_of_a_round_is_small_and_starts_the_next():
    loader = loader_of(Runner())
    states = [loader.state() for _ in loader]
    assert [state["transitions"] for state in states] == [4, 8, 12, 16, 20, 0]
    assert states[-1] == {"round": 1, "transitions": 0, "micro_batch": 4}
    assert ["experience" in state for state in states] == [True] * 5 + [False]


@pytest.mark.parametrize("done", range(1, 7))
def test_a_resumed_run_takes_the_micro_batches_that_were_left(done: int):
    whole = loader_of(Runner())
    expected = [batch for _ in range(2) for batch in whole]
    first = loader_of(Runner())
    for _, _batch in zip(range(done), first, strict=False):
        state = first.state()
    runner = Runner()
    resumed = loader_of(runner)
    resumed.load_state(state)
    assert resumed.state() == state  # a checkpoint before the first micro-batch loses nothing
    left = [*resumed]
    assert runner.calls == ([("restore", 0)] if done < 6 else [("collect", 1)])
    assert left + ([*resumed] if done < 6 else []) == expected[done:]


def test_another_micro_batch_resumes_where_it_can():
    loader = loader_of(Runner(), RoundPlan(2, 4, 2, 1, micro_batch=6, train_steps=3))
    loader.load_state({"round": 0, "transitions": 12})
    assert loader.position == 2
    with pytest.raises(GuardlitError, match="8 transitions into a round, where no micro-batch starts"):
        loader.load_state({"round": 0, "transitions": 8})


def test_a_failed_restore_can_be_saved_again():
    runner = Runner()
    loader = loader_of(runner)
    state = {"round": 0, "transitions": 4, "micro_batch": 4, "experience": {"latents": ["of another round"]}}
    loader.load_state(state)
    with pytest.raises(AssertionError):
        next(iter(loader))
    assert loader.state() == state


def test_a_pass_that_was_cut_short_starts_the_next_round():
    runner = Runner()
    loader = loader_of(runner)
    next(iter(loader))
    assert [batch[0] for batch in loader] == [1] * 6
    assert runner.calls == [("collect", 0), ("collect", 1)]
