from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import guardlit.rounds.plan as plan_module
from guardlit.errors import GuardlitError
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.round import Round
from guardlit.types import Prompt


@st.composite
def plans(draw: st.DrawFn) -> RoundPlan:
    """Plans whose numbers divide."""
    world, epochs, updates = (draw(st.sampled_from([1, 2, 3, 4])) for _ in range(3))
    group = draw(st.integers(2, 6))
    prompts = draw(st.integers(1, 4)) * world * updates
    steps = draw(st.integers(1, 5))
    transitions = prompts * group // updates // world * steps
    micro = draw(st.sampled_from([d for d in range(1, transitions + 1) if transitions % d == 0]))
    return RoundPlan(prompts, group, updates * epochs, epochs, micro, steps, world)


@settings(max_examples=100, deadline=None)
@given(plans(), st.integers(0, 2**31), st.integers(0, 50))
def test_processes_share_a_round_in_complete_groups(plan: RoundPlan, seed: int, index: int):
    rounds = [
        Round(index, [Prompt(str(i)) for i in range(plan.prompts_per_round)], [], plan, seed, rank)
        for rank in range(plan.world_size)
    ]
    dealt = [s for r in rounds for s in r.samples]
    assert sorted(dealt) == list(range(plan.images))  # every image once
    assert {len(r.samples) for r in rounds} == {plan.local_images}
    groups = Counter(s // plan.images_per_prompt for s in dealt)
    assert set(groups.values()) == {plan.images_per_prompt}  # no group is short
    assert torch.equal(rounds[0].group_ids.bincount(), torch.full((plan.prompts_per_round,), plan.images_per_prompt))


@settings(max_examples=100, deadline=None)
@given(plans(), st.integers(0, 2**31), st.integers(0, 50))
def test_every_transition_is_trained_once_an_inner_epoch(plan: RoundPlan, seed: int, index: int):
    batches = plan.passes(seed, index)
    assert len(batches) == plan.micro_batches
    assert {len(rows) for rows, _ in batches} == {plan.micro_batch}
    seen = Counter(pair for rows, steps in batches for pair in zip(rows, steps, strict=True))
    expected = [(q, s) for q in range(plan.local_images) for s in range(plan.train_steps)]
    assert seen == dict.fromkeys(expected, plan.inner_epochs)


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 2**31), st.integers(0, 50))
def test_an_update_has_the_same_images_at_any_world_size(plan: RoundPlan, seed: int, index: int):
    def updates(world: int) -> list[set[tuple[int, int]]]:
        numbers = {**vars(plan), "world_size": world, "micro_batch": 1}
        some = RoundPlan(**numbers)
        order, per_update = some.order(seed, index).tolist(), some.micro_batches_per_update
        seen: list[set[tuple[int, int]]] = [set() for _ in range(some.updates_per_round)]
        for rank in range(world):
            local = order[rank::world]
            for i, (rows, steps) in enumerate(some.passes(seed, index)):
                seen[i // per_update] |= {(local[q], s) for q, s in zip(rows, steps, strict=True)}
        return seen

    assert updates(plan.world_size) == updates(1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**31))
def test_prompts_come_up_equally_often(per_round: int, available: int, seed: int):
    plan = RoundPlan(per_round, 2, 1, 1, 1, 1)
    rounds = 20
    drawn = [i for k in range(rounds) for i in plan.prompt_indices(seed, k, available)]
    counts = Counter(drawn)
    assert set(drawn) <= set(range(available))
    assert max(counts.values()) - min(counts.get(i, 0) for i in range(available)) <= 1
    assert drawn[3 * per_round : 4 * per_round] == plan.prompt_indices(seed, 3, available)  # no history


def test_looking_far_ahead_permutes_the_prompts_once(monkeypatch: pytest.MonkeyPatch):
    seeds = []
    monkeypatch.setattr(plan_module, "_permutation", lambda n, seed: seeds.append(seed) or torch.arange(n))
    plan_module._walk.cache_clear()
    for k in (*range(64), *range(1, 65)):
        RoundPlan(8, 2, 1, 1, 1, 1).prompt_indices(11, k, 1000)
    plan_module._walk.cache_clear()
    assert len(seeds) == 1


def test_the_seed_and_the_round_change_everything():
    plan = RoundPlan(8, 4, 2, 2, 4, 3)
    assert plan.order(1, 0).tolist() != plan.order(2, 0).tolist() != plan.order(2, 1).tolist()
    assert plan.prompt_indices(1, 0, 50) != plan.prompt_indices(2, 0, 50)


def test_a_micro_batch_that_divides_the_images_stays_at_one_timestep():
    plan = RoundPlan(4, 4, 2, 1, 4, 3)
    assert all(len(set(steps)) == 1 for _, steps in plan.passes(0, 0))
    mixed = RoundPlan(4, 4, 2, 1, 12, 3)
    assert any(len(set(steps)) > 1 for _, steps in mixed.passes(0, 0))


def test_the_published_arithmetic():
    """48 x 24 images on 16 GPUs, micro-batches of 9 images, accumulation 4 batches x 9 steps: 2 updates a round."""
    plan = RoundPlan(48, 24, 2, 1, 9, 9, world_size=16)
    assert (plan.images, plan.local_images, plan.micro_batches_per_update) == (1152, 72, 36)
    assert plan.micro_batches == 72
    assert "1152, 72 on each of 16 ranks" in plan.describe()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            (3, 3, 2, 1, 1, 1),
            "3 prompts x 3 images) = 9 is not divisible by updates per inner epoch = 2; it is by 1, 3, 9",
        ),
        ((4, 4, 3, 2, 1, 1), "updates_per_round = 3 is not divisible by inner_epochs = 2; it is by 1, 3"),
        ((4, 4, 2, 1, 5, 3), "(8 images x 3 trained steps) = 24 is not divisible by micro_batch = 5; it is by 4, 6, 3"),
        ((3, 2, 2, 1, 1, 1, 2), "images per update = 3 is not divisible by world size = 2"),
        ((0, 2, 2, 1, 1, 1), "prompts_per_round=0 must be at least 1"),
        ((4, 1, 2, 1, 1, 1), "a group, which needs at least 2 images"),
    ],
)
def test_numbers_that_do_not_divide_are_named(numbers: tuple[int, ...], message: str):
    with pytest.raises(GuardlitError) as error:
        RoundPlan(*numbers)
    assert message.split("; it is by")[0] in str(error.value)


def test_sample_weights_are_one_on_average_over_what_remains():
    plan = RoundPlan(4, 4, 2, 1, 4, 1)
    round = Round(0, [Prompt("p")] * 4, [], plan, seed=3)
    mask = torch.ones(16, dtype=torch.bool)
    mask[[0, 5, 6]] = False
    weights = round.sample_weights(mask)
    by_update = weights[round.order].view(2, 8)
    torch.testing.assert_close(by_update.mean(1), torch.ones(2))
    assert not weights[~mask].any()
    assert not round.sample_weights(torch.zeros(16, dtype=torch.bool)).any()


def test_gathered_rows_come_back_by_image():
    plan = RoundPlan(4, 4, 2, 1, 4, 1, world_size=2)
    rounds = [Round(0, [Prompt("p")] * 4, [], plan, 3, rank) for rank in (0, 1)]
    gathered = torch.stack([torch.tensor(r.samples).float() for r in rounds])
    assert rounds[0].by_image(gathered).tolist() == list(range(16))


def test_a_place_in_a_round_is_found_by_any_processes_that_reach_it():
    alone, four = (RoundPlan(2, 4, 2, 1, 1, train_steps=2, world_size=world) for world in (1, 4))
    assert (alone.position(12), four.position(12)) == (12, 3)
    with pytest.raises(GuardlitError, match=r"stands 10 transitions into a round.*= 4: let this divide 10, or resume"):
        four.position(10)
