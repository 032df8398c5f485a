"""When a reference is renewed, what is logged of the penalty, and which settings are refused; no Trainer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from brightness import Brightness, Contrast
from small_policy import SmallPolicy

from guardlit.errors import GuardlitError
from guardlit.gate import UncertaintyGate
from guardlit.kl import KL
from guardlit.processes.world import World
from guardlit.rewards import Composite, Reward, Term
from guardlit.training.update.penalty import Penalty

REWARD = Composite([Term(Brightness()), Term(Contrast(), 0)])


class Renewing(SmallPolicy):
    """Counts renewals."""

    renewals = 0

    def allow_renewal(self) -> None:
        self.renews = True

    def renew_reference(self) -> None:
        self.renewals += 1

    def reference_state(self) -> dict[str, torch.Tensor]:
        return {"scale": torch.tensor(float(self.renewals))} if self.renewals else {}

    def load_reference_state(self, state: dict[str, torch.Tensor]) -> None:
        self.renewals = int(state.get("scale", 0))


def penalty(kl: KL | None, policy: SmallPolicy | None = None) -> Penalty:
    return Penalty(kl, REWARD, policy or Renewing(), (0, 4))


def rounds_that_renew(kl: KL, divergences: list[list[float]]) -> list[int]:
    """Indices of the rounds that begin with a renewal; each round's updates have these mean divergences."""
    policy = Renewing()
    mine, found = penalty(kl, policy), []
    for index, means in enumerate(divergences):
        before = policy.renewals
        mine.begin_round(policy, index)
        if policy.renewals > before:
            found.append(index)
        for mean in means:  # of two micro-batches
            mine.observe([{"kl": torch.tensor([mean / 2])}, {"kl": torch.tensor([mean * 3 / 2])}], World.single())
    return found


def test_every_so_many_rounds():
    assert rounds_that_renew(KL(1.0, renew_every=3), [[1.0]] * 11) == [3, 6, 9]
    assert rounds_that_renew(KL(1.0), [[1.0]] * 5) == []


def test_above_a_mean_divergence_of_the_round_before():
    means = [[0.1, 0.2], [0.1, 0.4], [0.1, 0.1], [0.3, 0.3]]
    assert rounds_that_renew(KL(1.0, renew_above=0.2), [*means, [0.0]]) == [2, 4]


def test_what_comes_first_renews_and_the_rounds_count_from_there():
    means = [[0.0], [0.9], [0.0], [0.0], [0.0], [0.0]]
    assert rounds_that_renew(KL(1.0, renew_every=3, renew_above=0.5), means) == [2, 5]


def test_a_checkpoint_continues_it():
    kl, policy = KL(1.0, renew_every=4, renew_above=0.5, gate=UncertaintyGate("brightness")), Renewing()
    first = penalty(kl, policy)
    first.begin_round(policy, 4)
    first.observe([{"kl": torch.tensor([0.7])}], World.single())
    first.gating.weights({"brightness": torch.rand(9), "contrast": torch.rand(9)})
    part = first.state(policy)
    other = Renewing()
    second = penalty(kl, other)
    second.load(part, other)
    assert (second.renewed, other.renewals) == (4, 1)
    assert second.state(other) == part
    assert second.gating.means == first.gating.means != []
    second.begin_round(other, 5)
    assert other.renewals == 2
    second.load({}, other)  # of a version without renewals
    assert (second.renewed, other.renewals, second.gating.means) == (0, 0, [])


def test_a_checkpoint_without_changes_has_no_entry():
    assert penalty(KL(1.0)).state(SmallPolicy()) == penalty(None).state(SmallPolicy()) == {}


def test_a_renewed_reference_is_not_lost_in_silence():
    policy = Renewing()
    mine = penalty(KL(1.0, renew_every=1), policy)
    mine.begin_round(policy, 1)
    part = mine.state(policy)
    with pytest.raises(
        GuardlitError, match=r"^the checkpoint's reference was renewed in round 2, .* set model.kl.renew"
    ):
        penalty(KL(1.0)).load(part, SmallPolicy())
    penalty(None).load(part, SmallPolicy())  # without a penalty there is no reference


def test_what_is_logged():
    policy, experience = Renewing(), SimpleNamespace(kl_weight=torch.tensor([1.0, 0, 0, 0]))
    mine = penalty(KL(1.0, renew_every=2, gate=UncertaintyGate("brightness")), policy)
    assert mine.metrics(experience) == {
        "train/kl_gated": 0.25,
        "train/kl_gate_fraction": 0.1,
        "reference/renewed_round": 0,
    }
    mine.begin_round(policy, 2)
    assert mine.metrics(experience)["reference/renewed_round"] == 3
    assert penalty(KL(1.0)).metrics(experience) == penalty(None).metrics(experience) == {}


@pytest.mark.parametrize(
    ("kl", "reward", "line"),
    [
        (KL(1.0, step_weights=(0, 0)), REWARD, r"kl.step_weights=\[0, 0\] are 0 at every trained step, 2 to 3"),
        (KL(1.0, gate=UncertaintyGate("brightness")), Reward.of(Brightness()), "kl.gate compares the proxy"),
        (KL(1.0, gate=UncertaintyGate("bright")), REWARD, "kl.gate.proxy=bright is no term"),
        (KL(1.0, renew_every=1), REWARD, "SmallPolicy cannot renew its reference"),
    ],
)
def test_what_cannot_have_its_effect_is_refused(kl: KL, reward: Reward, line: str):
    with pytest.raises(GuardlitError, match=f"^{line}"):
        Penalty(kl, reward, SmallPolicy(), (2, 4))
    Penalty(KL(1.0, step_weights=(0, 0, 1)), REWARD, SmallPolicy(), (2, 4))
