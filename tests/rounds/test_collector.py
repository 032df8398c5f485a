"""Collecting a round: values in, an experience out; no Trainer, no files."""

from __future__ import annotations

import pytest
import torch
from brightness import Brightness, Contrast
from forked import on_ranks
from small_policy import SmallPolicy

from guardlit.advantage import group_relative
from guardlit.errors import NonFiniteError
from guardlit.gate import Gating, UncertaintyGate
from guardlit.processes.world import World
from guardlit.rewards import Composite, Term
from guardlit.rewards.reward import Reward
from guardlit.rounds.collector import Collector
from guardlit.rounds.experience import Experience
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.round import Round
from guardlit.rounds.settings import Rollout
from guardlit.rounds.setup import RoundSetup
from guardlit.sde import FlowSDE
from guardlit.surrogate import Objective
from guardlit.types import Prompt

ROLLOUT = Rollout(num_inference_steps=4, guidance_scale=1.0, timestep_fraction=0.75)
PROMPTS = [Prompt("a cat"), Prompt("two dogs")]


def round_of(world: World) -> Round:
    plan = RoundPlan(2, 4, 1, 1, 4, ROLLOUT.train_steps, world.size)
    return Round(3, PROMPTS, [], plan, seed=1, rank=world.rank)


def setup(policy: SmallPolicy, **changes: object) -> RoundSetup:
    values = {"reward": Reward.of(Brightness()), "objective": Objective(), "rollout": ROLLOUT, **changes}
    return RoundSetup(policy=policy, coefficients=FlowSDE().coefficients(policy.sigmas(4)), **values)


def collect(world: World, batch_size: int = 2, broken: str | None = None, **changes: object) -> Experience:
    policy = SmallPolicy(broken=broken)
    return Collector(setup(policy, **changes), world, round_of(world), batch_size).collect()


def test_states_advantages_and_metrics_of_a_round():
    experience = collect(World.single(), keeps_velocities=lambda rollout, training: True)
    assert experience.latents.shape == experience.velocity.shape == (8, 3, 1, 2, 2)
    # the network is linear and known: the kept velocity is its value at the kept state
    numbers = SmallPolicy().conditioning([p.text for p in PROMPTS])["number"]
    number = numbers[torch.tensor(experience.round.samples) // 4].reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(experience.velocity, 0.5 * experience.latents + number)
    metrics = experience.metrics
    assert metrics["reward/failed"] == 0
    assert 0 < metrics["average_reward/brightness"] < 1
    groups = experience.advantage.view(2, 4)
    assert bool(experience.mask.all())
    torch.testing.assert_close(groups.sum(1), torch.zeros(2), rtol=0, atol=1e-4)
    assert {"time/rollout_s", "time/reward_s", "time/reward_hidden_s"} < metrics.keys()
    assert "rollout/merged" not in metrics


def test_velocities_are_kept_only_where_they_are_asked_for():
    asked = []

    def keeps(rollout_rows: int, training_rows: int) -> bool:
        asked.append((rollout_rows, training_rows))
        return False

    assert collect(World.single(), keeps_velocities=keeps).velocity is None
    assert set(asked) == {(2, 4)}


def test_the_old_policy_draws():
    policy = SmallPolicy()
    with torch.no_grad():
        policy.scale.add_(1)  # the trained weights have moved, the old ones have not
    moved = Collector(setup(policy), World.single(), round_of(World.single()), 2).collect()
    assert torch.equal(moved.latents, collect(World.single()).latents)
    assert set(policy.calls) == {("old",)}


def test_progress_is_announced_in_order():
    seen = []
    setup_ = setup(SmallPolicy())
    Collector(setup_, World.single(), round_of(World.single()), 4, lambda *phase: seen.append(phase)).collect()
    assert seen[:2] == [("encode", 0, 2), ("encode", 2, 2)]
    assert [done for phase, done, total in seen if (phase, total) == ("rollout", 8)] == list(range(1, 9))
    assert seen[-1] == ("reward", 2, 2)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_batch_size_changes_nothing(size: int):
    """Rounding aside: the noise belongs to the sample."""
    one, other = collect(World.single(), 8), collect(World.single(), size)
    torch.testing.assert_close(one.latents, other.latents, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(one.advantage, other.advantage, rtol=1e-4, atol=1e-3)


def test_a_broken_velocity_names_round_rank_and_prompt():
    with pytest.raises(NonFiniteError, match=r"round 4, rank 0: the policy's velocity is NaN.*prompt 'two dogs'"):
        collect(World.single(), broken="two dogs")


def test_a_failed_reward_has_no_advantage():
    reward = Reward.of(Brightness(fail="dogs"))
    experience = collect(World.single(), reward=reward, max_failed_fraction=0.5)
    assert experience.metrics["reward/failed"] == 0.5
    assert experience.mask.tolist() == [True] * 4 + [False] * 4
    assert experience.advantage[4:].tolist() == [0.0] * 4


def _on_a_rank(world: World) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    experience = collect(world, 4)
    return experience.round.samples, experience.latents.numpy(), experience.advantage.numpy()


def test_two_ranks_collect_the_round_of_one():
    one, parts = collect(World.single(), 4), on_ranks(_on_a_rank)
    rows = {sample: row for row, sample in enumerate(one.round.samples)}
    for samples, latents, advantage in parts:
        assert len(samples) == 4
        assert torch.equal(torch.from_numpy(latents), one.latents[[rows[sample] for sample in samples]])
        assert torch.equal(torch.from_numpy(advantage), one.advantage)


def gated(world: World) -> Experience:
    """The proxy dislikes contrast, so that it never agrees with the auxiliary."""
    terms = [Term(Contrast(), name="proxy", divide=-1), Term(Contrast(), 0, "watched")]
    gating = Gating(UncertaintyGate("proxy", fraction=0.2), {"proxy": 1, "watched": 1})
    return collect(world, 4, reward=Composite(terms), gating=gating, kl_steps=torch.tensor([1, 0.5, 0, 0]))


def _gated_on_a_rank(world: World) -> list[float]:
    return gated(world).kl_weight.tolist()


def test_the_gate_is_that_of_all_images_on_every_rank():
    weights = gated(World.single()).kl_weight
    assert 0 < float(weights.sum()) < 8
    assert on_ranks(_gated_on_a_rank) == [weights.tolist()] * 2


def test_a_transition_has_the_weight_of_its_image_and_of_its_step():
    experience = gated(World.single())
    rows, slots = [0, 3, 5, 7, 2, 4], [0, 1, 2, 0, 1, 1]
    batch = experience.take(rows, slots)
    images = experience.kl_weight[[experience.round.samples[row] for row in rows]]
    assert torch.equal(batch.kl_weight, images * torch.tensor([1, 0.5, 0, 1, 0.5, 0.5]))
    state = experience.state(lambda rows: [rows])
    facts = (experience.round, experience.conditioning, experience.coefficients)
    restored = Experience.restore(state, *facts, kl_steps=experience.kl_steps)
    assert torch.equal(restored.take(rows, slots).kl_weight, batch.kl_weight)
    del state["kl_weight"]  # a checkpoint of before there were gates
    assert Experience.restore(state, *facts).take(rows, slots).kl_weight.tolist() == [1] * 6


def _broken_on_rank_1(world: World) -> str:
    mine = [sample // 4 for sample in round_of(world).samples]
    broken = PROMPTS[mine[0]].text if world.rank == 1 else None
    try:
        collect(world, 4, broken=broken)
    except NonFiniteError as error:
        return str(error).partition(": ")[0]
    return "collected"


def test_one_rank_s_broken_velocity_is_raised_on_both():
    assert on_ranks(_broken_on_rank_1) == ["round 4, rank 1"] * 2


def test_advantages_are_those_of_the_rewards():
    scores = []

    class Kept(Brightness):
        def score(self, request):  # type: ignore[no-untyped-def]
            result = super().score(request)
            scores.append(result.values)
            return result

    experience = collect(World.single(), reward=Reward.of(Kept()))
    by_image = torch.empty(8)
    by_image[torch.tensor(experience.round.samples)] = torch.cat(scores)
    expected = group_relative(by_image, torch.arange(8) // 4, clip=5.0)
    torch.testing.assert_close(experience.advantage, expected, rtol=1e-5, atol=1e-6)
