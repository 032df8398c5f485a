"""Whether a round merges its adapter, by values alone."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from brightness import Brightness
from small_policy import SmallPolicy

from guardlit.errors import GuardlitError
from guardlit.processes.world import World
from guardlit.rewards.reward import Reward
from guardlit.rounds.collector import Collector
from guardlit.rounds.experience import Experience
from guardlit.rounds.merging import check, decision, evaluating, merges_evaluation
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.round import Round
from guardlit.rounds.settings import Rollout
from guardlit.rounds.setup import RoundSetup
from guardlit.sde import FlowSDE
from guardlit.surrogate import Objective
from guardlit.types import Prompt

# merge, mergeable, velocities kept, equal rows, batches, half precision
CASES = [
    (False, True, False, True, 2, True, "never"),
    (True, False, False, True, 2, True, "never"),
    (True, True, True, True, 2, False, "always"),
    ("auto", True, False, True, 2, False, "always"),
    ("auto", True, True, True, 2, True, "never"),  # a first ratio of exactly 1 would be lost
    ("auto", True, True, False, 2, False, "never"),  # in float32 nothing is gained
    ("auto", True, True, False, 2, True, "measured"),
    ("auto", True, True, False, 1, True, "never"),  # nothing is left to draw after the measurement
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_decision(case: tuple):
    assert decision(*case[:-1]) == case[-1]


def test_a_policy_without_an_adapter_cannot_merge():
    with pytest.raises(GuardlitError, match=r"rollout\.merge: true needs an adapter"):
        check(SmallPolicy(), True)
    check(SmallPolicy(), "auto")
    check(SmallPolicy(can_merge=True), True)


@pytest.mark.parametrize(("merge", "merges"), [("auto", True), (True, True), (False, False)])
def test_validation_images_are_drawn_merged_in_float32(merge: object, merges: bool):
    policy = SmallPolicy(can_merge=True)
    assert merges_evaluation(policy, merge) == merges
    with evaluating(policy, merge):
        assert policy.in_use == ["merged"] * merges


def collect(policy: SmallPolicy, clip_range: float, was_merged: bool | None = None) -> Experience:
    """A round of 8 images in batches of 2, in half precision, with velocities that are kept."""
    rollout = Rollout(num_inference_steps=4, guidance_scale=1.0, timestep_fraction=0.75)
    setup = RoundSetup(
        policy=policy,
        reward=Reward.of(Brightness()),
        objective=Objective(clip_range=clip_range),
        rollout=rollout,
        coefficients=FlowSDE().coefficients(policy.sigmas(4)),
        keeps_velocities=lambda rollout_rows, training_rows: True,
        half_precision=True,
        was_merged=was_merged,
    )
    round = Round(0, [Prompt("a cat"), Prompt("a dog")], [], RoundPlan(2, 4, 1, 1, 4, 3), seed=1)
    return Collector(setup, World.single(), round, 2).collect()


def test_a_small_error_merges_from_the_second_batch_on(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    policy = SmallPolicy(can_merge=True, merge_error=1e-4)
    metrics = collect(policy, clip_range=0.1).metrics
    assert metrics["rollout/merged"] == 1
    assert 0 < metrics["rollout/merge_error"] < 0.05
    # the first batch unmerged, one measuring call, three merged batches
    assert policy.calls == [("old",)] * 4 + [("old", "merged")] * (1 + 3 * 4)
    assert policy.in_use == []
    (line,) = (r.getMessage() for r in caplog.records if "is drawn with the adapter" in r.getMessage())
    assert line.startswith("round 1 is drawn with the adapter merged into the weights: merging makes a log ratio of ")


def test_a_large_error_does_not_merge():
    policy = SmallPolicy(can_merge=True, merge_error=0.1)
    metrics = collect(policy, clip_range=1e-6).metrics
    assert metrics["rollout/merged"] == 0
    assert metrics["rollout/merge_error"] > 5e-7
    assert policy.calls.count(("old", "merged")) == 1


def test_the_measured_error_is_the_log_ratio_of_merged_to_unmerged_velocities():
    """RatioNorm: log r = g mean(dv noise), and dv is the merging error times the state."""
    policy = SmallPolicy(can_merge=True, merge_error=0.01)
    experience = collect(policy, clip_range=1e-6)
    rows, slots = torch.arange(2), torch.arange(2) % 3
    batch = experience.take(rows.tolist(), slots.tolist())
    log_ratio = batch.gain * (0.01 * batch.latents.double() * batch.noise.double()).flatten(1).mean(1)
    assert experience.metrics["rollout/merge_error"] == pytest.approx(float(log_ratio.abs().max()), rel=1e-3)


@pytest.mark.parametrize(("was_merged", "lines"), [(None, 1), (False, 1), (True, 0)])
def test_the_log_says_only_what_changes(was_merged: bool | None, lines: int, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    draw = partial(collect, SmallPolicy(can_merge=True), 0.1)
    draw(was_merged)
    assert sum("is drawn with the adapter" in r.getMessage() for r in caplog.records) == lines
