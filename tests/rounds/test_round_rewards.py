"""A round's rewards become advantages and metrics, without a Trainer."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from background import Marks
from brightness import Brightness
from torch import Tensor, nan

from guardlit.advantage import GroupAdvantage
from guardlit.errors import GuardlitError
from guardlit.processes.world import World
from guardlit.rewards import Composite, Reward, Term
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.round import Round
from guardlit.rounds.round_rewards import RoundRewards, check_comparing, reward_metrics
from guardlit.types import Prompt, RewardRequest, RewardResult

PLAN = RoundPlan(2, 4, updates_per_round=2, inner_epochs=1, micro_batch=2, train_steps=1)
ROUND = Round(0, [Prompt("a"), Prompt("b")], [], PLAN, seed=3)


class Counted(Brightness):
    """Counts what it scored."""

    name = "bright"

    def counters(self) -> dict[str, float]:
        return {"requests": 2.0, "latency_p95": 1.0}


@dataclass(frozen=True)
class First(World):
    """Rank 0 of two; rank 1 has `rows` for each `gather`, and `objects` for each `gather_objects`, in turn."""

    rows: list[Tensor] = field(default_factory=list)
    objects: list[Any] = field(default_factory=list)
    raised: list[GuardlitError | None] = field(default_factory=list)

    def gather(self, rows: Tensor) -> Tensor:
        return torch.stack([rows, self.rows.pop(0)])

    def gather_objects(self, value: Any) -> list[Any]:
        return [value, self.objects.pop(0)]

    def largest(self, number: int) -> int:
        return max(number, self.objects.pop(0))

    def raise_on_all(self, error: GuardlitError | None) -> None:
        self.raised.append(error)
        raise error or GuardlitError("of rank 1")


def rewards(reward: Reward, failed: float = 0.0, round: Round = ROUND, world: World | None = None) -> RoundRewards:
    return RoundRewards(reward, GroupAdvantage(), failed, round, world or World.single())


def by_row(scores: list[float], round: Round = ROUND) -> list[float]:
    """Scores by image as this rank has them, by row."""
    return [scores[image] for image in round.samples]


def results(reward: Reward, **scores: list[float]) -> list[RewardResult]:
    """As `Scoring` gives them, two images a request."""
    parts = range(0, len(next(iter(scores.values()))), 2)
    terms = [{name: torch.tensor(v[i : i + 2]) for name, v in scores.items()} for i in parts]
    return [reward.combine({n: RewardResult.from_values(v, reason="broken pipe") for n, v in t.items()}) for t in terms]


def batches(round: Round = ROUND) -> list[list[int]]:
    return [round.samples[i : i + 2] for i in range(0, len(round.samples), 2)]


SCORES = [0.1, 0.2, 0.3, 0.4, 5.0, 6.0, 7.0, 9.0]


def test_a_round_on_one_rank():
    reward = Reward.of(Counted())
    advantages, metrics = rewards(reward).finish(batches(), results(reward, bright=by_row(SCORES)))
    expected = GroupAdvantage()({"bright": torch.tensor(SCORES)}, ROUND.group_ids)
    assert torch.equal(advantages.values, expected.values)
    assert metrics == {
        "reward/failed": 0,
        "reward/zero_std_share": 0,
        "average_reward/bright": pytest.approx(3.5),
        "reward/bright_std": pytest.approx(torch.tensor(SCORES).std(correction=0).item()),
        "reward/bright/requests": 2,
        "reward/bright/latency_p95": 1,
    }


def test_a_round_on_two_ranks_is_that_of_one():
    """Scores are put in the order of the images; counters are summed, statistics are the largest."""
    reward = Reward.of(Counted())
    mine, other = (replace(ROUND, plan=replace(PLAN, world_size=2), rank=rank) for rank in (0, 1))
    there = {"reward/bright/requests": 5.0, "reward/bright/latency_p95": 0.5, "reward/bright/deaths": 1.0}
    world = First(0, 2, torch.device("cpu"), rows=[torch.tensor(by_row(SCORES, other))], objects=[there])
    found = rewards(reward, round=mine, world=world).finish(batches(mine), results(reward, bright=by_row(SCORES, mine)))
    alone = rewards(reward).finish(batches(), results(reward, bright=by_row(SCORES)))
    assert torch.equal(found[0].values, alone[0].values)
    counted = {"reward/bright/requests": 7, "reward/bright/latency_p95": 1, "reward/bright/deaths": 1}
    assert found[1] == alone[1] | counted


def test_too_many_failures_stop_the_run_with_the_first_prompt():
    reward = Reward.of(Counted())
    scores = [nan, *SCORES[1:5], nan, *SCORES[6:]]
    with pytest.raises(GuardlitError) as caught:
        rewards(reward, failed=0.24).finish(batches(), results(reward, bright=by_row(scores)))
    first = next(ROUND.prompt_of(image).text for image in ROUND.samples if math.isnan(scores[image]))
    assert str(caught.value) == (
        f"round 1: 2 of 8 rewards failed, more than max_failed_fraction=0.24; the first on prompt '{first}' of rank 0; "
        "broken pipe"
    )
    _, metrics = rewards(reward, failed=0.25).finish(batches(), results(reward, bright=by_row(scores)))
    assert metrics["reward/failed"] == 0.25


def test_a_rank_without_failures_stops_with_the_others():
    reward = Reward.of(Counted())
    mine = replace(ROUND, plan=replace(PLAN, world_size=2))
    world = First(0, 2, torch.device("cpu"), rows=[torch.full((4,), nan)])
    with pytest.raises(GuardlitError, match="of rank 1"):
        rewards(reward, round=mine, world=world).finish(batches(mine), results(reward, bright=by_row(SCORES, mine)))
    assert world.raised == [None]


def test_a_logged_term_costs_nothing_and_its_failures_are_logged():
    reward = Composite([Term(Counted(), weight=2, divide=4), Term(Brightness(), weight=0)])
    scored = results(reward, bright=by_row(SCORES), brightness=by_row([*SCORES[:6], nan, nan]))
    advantages, metrics = rewards(reward).finish(batches(), scored)
    assert advantages.mask.all()
    assert {name: metrics[f"reward/{name}"] for name in ("failed", "bright_failed", "brightness_failed")} == {
        "failed": 0,
        "bright_failed": 0,
        "brightness_failed": 0.25,
    }
    assert metrics["average_reward/composite"] == pytest.approx(3.5 / 4 * 2)
    assert metrics["reward_normalized/bright_mean"] == pytest.approx(3.5 / 4)
    assert "reward_normalized/brightness_mean" not in metrics
    assert metrics["average_reward/brightness"] == pytest.approx(2.0)


def test_a_term_that_is_not_due_has_no_metrics():
    reward = Composite([Term(Counted()), Term(Brightness(), weight=0, every=2)])
    _, metrics = rewards(reward, round=replace(ROUND, index=1)).finish(
        batches(replace(ROUND, index=1)), results(reward, bright=SCORES)
    )
    assert not any("brightness" in name for name in metrics)


def test_what_a_scorer_logs_gets_columns():
    reward = Reward.of(Marks())
    request = RewardRequest(torch.zeros(8, 3, 4, 4, dtype=torch.uint8), ["a"] * 8, [{}] * 8)
    _, metrics = rewards(reward).finish([ROUND.samples], [reward.score(request)])
    columns = {"marks", "gray", "contrast"}
    assert {f"average_reward/{name}" for name in columns} <= metrics.keys()
    assert {"reward/gray_failed", "reward/contrast_failed"} <= metrics.keys()
    assert "reward/marks_failed" not in metrics  # that is `reward/failed`


def test_without_one_score_there_is_no_mean():
    metrics = reward_metrics(Reward.of(Counted()), {"bright": torch.full((4,), nan)})
    assert metrics.keys() == {"average_reward/bright", "reward/bright_std"}
    assert all(math.isnan(value) for value in metrics.values())


def test_a_round_without_any_spread_is_told():
    """Numbered from 1; a single group with a spread is enough to say nothing."""
    flat, spread = [0.5] * 8, [0.5] * 7 + [0.75]
    with pytest.warns(UserWarning, match=r"round 1: no group has any spread: reward 'brightness' gives all images"):
        finished(flat)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        finished(spread)


def finished(scores: list[float]) -> None:
    reward = Reward.of(Brightness())
    rewards(reward).finish(batches(), results(reward, brightness=by_row(scores)))


class Compared(Brightness):
    """Depends on the other images of the prompt."""

    compares_images = True


def test_a_reward_that_compares_images_needs_all_of_a_round_at_once():
    reward = Composite([Term(Brightness()), Term(Compared(), weight=0)])
    check_comparing(reward, ROUND, batches=1, world_size=1)
    check_comparing(Reward.of(Brightness()), ROUND, batches=4, world_size=2)
    for batches_, ranks in ((2, 1), (1, 2)):
        line = rf"reward 'compared' compares .* 8 images is drawn in {batches_} batches on {ranks} ranks"
        with pytest.raises(GuardlitError, match=line):
            check_comparing(reward, ROUND, batches_, ranks)


# features of images --------------------------------------------------------------------------------------------------

FEATURES = torch.randn(8, 3, generator=torch.Generator().manual_seed(4))


def seen(reward: Reward, round: Round = ROUND, lost: int = 0) -> list[RewardResult]:
    """Results with features, two images a request; the first `lost` requests failed in the term that gives them."""
    plain = results(reward, bright=by_row(SCORES, round))
    rows = FEATURES[round.samples].split(2)
    whole = [replace(one, features=features) for one, features in zip(plain, rows, strict=True)]
    return [replace(one, features=None, reason="dino: out of memory") for one in whole[:lost]] + whole[lost:]


def diverse(round: Round = ROUND, world: World | None = None, failed: float = 0.0) -> RoundRewards:
    return replace(rewards(Reward.of(Counted()), failed, round, world), advantage=GroupAdvantage(diversity="dino"))


def test_features_go_to_their_images():
    advantages, metrics = diverse().finish(batches(), seen(Reward.of(Counted())))
    scores = {"bright": torch.tensor(SCORES)}
    expected = GroupAdvantage(diversity="dino")(scores, ROUND.group_ids, features=FEATURES)
    assert torch.equal(advantages.values, expected.values)
    assert not torch.equal(advantages.values, GroupAdvantage()(scores, ROUND.group_ids).values)
    assert metrics["reward/diversity"] == expected.diversity


def test_features_on_two_ranks_are_those_of_one():
    """Rank 0 has lost all its features: their width comes from rank 1."""
    mine, other = (replace(ROUND, plan=replace(PLAN, world_size=2), rank=rank) for rank in (0, 1))
    there = [torch.tensor(by_row(SCORES, other)), FEATURES[other.samples]]
    for lost in (0, 2):
        world = First(0, 2, torch.device("cpu"), rows=list(there), objects=[3, {}])
        found = diverse(mine, world, 0.5).finish(batches(mine), seen(Reward.of(Counted()), mine, lost))
        known = FEATURES.clone()
        known[mine.samples[: 2 * lost]] = nan
        expected = GroupAdvantage(diversity="dino")({"bright": torch.tensor(SCORES)}, ROUND.group_ids, features=known)
        assert torch.equal(found[0].values, expected.values)


def test_too_many_lost_features_stop_the_run():
    given = seen(Reward.of(Counted()), lost=1)
    assert diverse(failed=0.25).finish(batches(), given)[0].mask.all()
    with pytest.raises(GuardlitError) as caught:
        diverse(failed=0.24).finish(batches(), given)
    assert str(caught.value) == (
        "round 1: 'dino' gave no features for 2 of 8 images, more than max_failed_fraction=0.24; "
        "model.advantage.diversity needs them; dino: out of memory"
    )
