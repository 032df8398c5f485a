"""Several scorers as one: sums, failures, names."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

import pytest
import torch
from torch import nan

from guardlit.errors import GuardlitError
from guardlit.rewards import Affine, Composite, Scorer, Term
from guardlit.types import RewardRequest, RewardResult


class Fixed(Scorer):
    """Gives the values it was made with."""

    def __init__(self, *values: float, refuses: str = "") -> None:
        self.values = torch.tensor(values)
        self.refuses = refuses

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:
        if prompt == self.refuses:
            raise ValueError(f"cannot score {prompt}")

    def setup(self, device: torch.device) -> None:
        self.device = device

    def score(self, request: RewardRequest) -> RewardResult:
        return RewardResult.from_values(self.values, provenance={"scorer": self.name})


REQUEST = RewardRequest(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), ["a", "b", "c"], [{}] * 3)


def test_weighted_sum_of_normalized_terms():
    terms = [Term(Fixed(26.0, 13.0, 0.0), name="pick", divide=26), Term(Fixed(1.0, 2.0, 4.0), weight=-0.25)]
    both = Composite(terms)
    both.setup(torch.device("cpu"))
    result = both.score(REQUEST)
    assert result.values.tolist() == [0.75, 0.0, -1.0]
    assert result.details["pick"].tolist() == [26.0, 13.0, 0.0]
    assert both.normalize(result.details)["pick"].tolist() == [1.0, 0.5, 0.0]
    assert result.details["fixed"].tolist() == [1.0, 2.0, 4.0]
    assert dict(both.weights) == {"pick": 1.0, "fixed": -0.25}
    assert result.provenance["pick.scorer"] == "fixed"
    assert result.provenance["pick.normalizer"] == "score / 26"
    assert terms[0].scorer.device == terms[1].scorer.device == torch.device("cpu")


def test_normalizers():
    scores = torch.tensor([18.0, 26.0])
    assert Term(Fixed()).normalize(scores) is scores
    assert Term(Fixed(), divide=26).normalize(scores)[1] == 1
    assert Term(Fixed(), affine=Affine(shift=18, scale=8)).normalize(scores).tolist() == [0, 1]
    assert Term(Fixed(), affine=Affine(18, 8)).normalizer == "(score - 18) / 8"


def test_the_terms_are_scored_apart_and_combined():
    both = Composite([Term(Fixed(1.0, 2.0, 3.0)), Term(Fixed(5.0, 6.0, 7.0), weight=0, name="gold", every=3)])
    assert [sorted(both.due(round)) for round in range(4)] == [
        ["fixed", "gold"],
        ["fixed"],
        ["fixed"],
        ["fixed", "gold"],
    ]
    assert [both.columns(round) for round in (0, 1)] == [("fixed", "gold"), ("fixed",)]
    assert list(both.terms) == ["fixed", "gold"]
    without = both.combine({name: term.attempt(REQUEST) for name, term in both.due(1).items()})
    assert without.values.tolist() == [1.0, 2.0, 3.0]
    assert list(without.details) == ["fixed"]


def test_the_reason_is_that_of_the_first_failed_sample():
    class Broken(Fixed):
        def score(self, request: RewardRequest) -> RewardResult:
            raise OSError("no connection\nto the server")

    late, early = Fixed(1.0, 2.0, nan), Fixed(nan, 2.0, 3.0)
    result = Composite([Term(late, name="late"), Term(early, name="early")]).score(REQUEST)
    assert result.reason == "early: the score is no number"
    result = Composite([Term(late, name="late"), Term(Broken(), name="remote")]).score(REQUEST)
    assert result.reason.startswith("remote: OSError: no connection (")
    assert "test_composite.py, line " in result.reason
    assert not result.valid.any()
    assert Composite([Term(Fixed(1.0, 2.0, 3.0)), Term(Broken(), weight=0)]).score(REQUEST).reason == ""


def test_only_what_is_trained_on_can_end_a_run():
    class Hopeless(Fixed):
        def score(self, request: RewardRequest) -> RewardResult:
            raise GuardlitError("wrong weights")

    watched = Composite([Term(Fixed(1.0, 2.0, 3.0)), Term(Hopeless(), weight=0)]).score(REQUEST)
    assert watched.valid.all()
    with pytest.raises(GuardlitError, match="wrong weights"):
        Composite([Term(Hopeless())]).score(REQUEST)


def test_a_failure_counts_only_where_it_is_trained_on():
    trained, logged = Fixed(1.0, nan, 3.0), Fixed(nan, 5.0, float("inf"))
    result = Composite([Term(trained, weight=2.0), Term(logged, weight=0.0, name="gold")]).score(REQUEST)
    assert result.valid.tolist() == [True, False, True]
    assert result.values[[0, 2]].tolist() == [2.0, 6.0]
    assert result.values[1].isnan()
    assert result.details["gold"].isnan().tolist() == [True, False, True]


def test_an_invalid_number_is_not_used():
    class Careless(Fixed):
        def score(self, request: RewardRequest) -> RewardResult:
            return RewardResult(self.values, torch.tensor([True, False, True]))

    result = Composite([Term(Careless(1.0, 2.0, 3.0))]).score(REQUEST)
    assert result.valid.tolist() == [True, False, True]


def test_prompts_are_checked_by_what_is_trained_on():
    both = Composite([Term(Fixed(refuses="bad")), Term(Fixed(refuses="odd"), weight=0, name="gold")])
    both.check_prompt("odd", {})
    with pytest.raises(ValueError, match="cannot score bad"):
        both.check_prompt("bad", {})


def test_mistakes():
    with pytest.raises(ValueError, match="different names, got fixed, fixed"):
        Composite([Term(Fixed()), Term(Fixed())])
    with pytest.raises(ValueError, match="at least one term"):
        Composite([])
    with pytest.raises(ValueError, match="at least one term"):
        Composite([Term(Fixed(), weight=0)])
    with pytest.raises(ValueError, match="divide of the reward term 'fixed' is 0"):
        Term(Fixed(), divide=0)
    with pytest.raises(ValueError, match="weight of the reward term 'fixed' is nan"):
        Term(Fixed(), weight=nan)
    with pytest.raises(ValueError, match=r"affine of the reward term 'fixed' is .*scale=0\); shift and scale must be"):
        Term(Fixed(), affine=Affine(18, 0))
    with pytest.raises(ValueError, match="divide of the reward term 'fixed' is 26 and affine is given too"):
        Term(Fixed(), divide=26, affine=Affine(18, 8))
    with pytest.raises(
        ValueError, match=r"every of the reward term 'fixed' is 2 with weight 1; .* only a term of weight"
    ):
        Term(Fixed(), every=2)
    with pytest.raises(ValueError, match="something else than 'composite'"):
        Composite([Term(Fixed(), name="composite")])


def test_terms_come_from_yaml():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(Scorer, "reward")
    terms = [
        {"scorer": {"class_path": "guardlit.rewards.PickScore"}, "divide": 26},
        {
            "scorer": {"class_path": "JPEGCompressibility", "init_args": {"incompressible": True}},
            "weight": 0,
            "every": 5,
        },
        {"scorer": "DigitRealism", "affine": {"shift": 0.5, "scale": -0.5}, "weight": 0.1},
    ]
    config = {"reward": {"class_path": "Composite", "init_args": {"terms": terms}}}
    composite = parser.instantiate(parser.parse_object(config)).reward
    assert dict(composite.weights) == {"pickscore": 1.0, "jpeg_incompressibility": 0.0, "digitrealism": 0.1}
    assert list(composite.due(1)) == ["pickscore", "digitrealism"]
    assert composite.provenance["digitrealism.normalizer"] == "(score - 0.5) / -0.5"


def test_importing_rewards_is_cheap():
    heavy = "{'transformers', 'torchvision', 'PIL', 'diffusers', 'peft', 'datasets'}"
    code = f"import sys, guardlit.rewards, guardlit.data.prompts; print(sorted({heavy} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
