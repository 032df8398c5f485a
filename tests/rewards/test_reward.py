"""Rewards: one scorer or several as weighted, normalized terms, and their sum."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping

import pytest
import torch
from background import Marks
from brightness import Brightness
from torch import nan

import guardlit.rewards
from guardlit.advantage import GroupAdvantage
from guardlit.errors import GuardlitError
from guardlit.rewards import Affine, Composite, GenEval, Reward, Scorer, Term
from guardlit.types import Prompt, RewardRequest, RewardResult

REQUEST = RewardRequest(
    torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 8, 8) * 51, ["a", "b", "c"], [{}] * 3
)
GRAYS = pytest.approx([0.0, 0.2, 0.4])


class Two(Scorer):
    """The two methods that a contributor writes."""

    def setup(self, device: torch.device) -> None: ...

    def score(self, request: RewardRequest) -> RewardResult:
        return self.result(torch.arange(float(len(request))))


def test_one_scorer_is_a_reward_of_one_term():
    reward = Reward.of(Two())
    assert (reward.name, dict(reward.weights), reward.columns(7)) == ("two", {"two": 1.0}, ("two",))
    result = reward.score(REQUEST)
    assert result.values.tolist() == [0, 1, 2]
    assert torch.equal(result.details["two"], result.values)
    scores = {"two": torch.tensor([3.0, nan])}
    assert reward.normalize(scores)["two"] is scores["two"]
    assert reward.total(scores).tolist()[0] == 3
    assert reward.total(scores)[1].isnan()


def test_a_composite_is_a_reward_already():
    both = Composite([Term(Two()), Term(Brightness())])
    assert Reward.of(both) is both


def test_a_scorer_knows_nothing_of_weights():
    for name in ("weights", "terms", "columns", "combine", "normalize", "total", "due"):
        assert not hasattr(Scorer, name), name


def test_total_is_the_sum_of_what_is_trained_on():
    terms = [
        Term(Two(), divide=4, weight=3, name="a"),
        Term(Two(), affine=Affine(1, 2), weight=-1, name="b"),
        Term(Two(), weight=0, name="watched"),
    ]
    scores = {"a": torch.tensor([4.0, 8.0, nan]), "b": torch.tensor([5.0, 1.0, 1.0]), "watched": torch.full((3,), nan)}
    total = Composite(terms).total(scores)
    assert total[:2].tolist() == [3 - 2, 6]
    assert total[2].isnan()


def test_advantages_are_those_of_the_total():
    reward = Composite([Term(Two(), divide=3, weight=0.7, name="a"), Term(Two(), weight=1.3, name="b")])
    scores = {name: torch.randn(12, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}
    groups = torch.arange(12) // 4
    expected = GroupAdvantage()({"total": reward.total(scores)}, groups)
    found = GroupAdvantage()(reward.normalize(scores), groups, reward.weights)
    assert torch.equal(found.values, expected.values)


def test_a_failed_request_fails_the_columns_that_its_scorer_logs():
    reward = Reward.of(Marks(spoilt=0))
    assert reward.columns(0) == ("marks", "gray", "contrast")
    failed, scored = reward.score(REQUEST), reward.score(REQUEST)
    assert all(failed.details[name].isnan().all() for name in reward.columns(0))
    assert failed.reason.startswith("marks: RuntimeError: spoilt (")
    assert scored.details.keys() == {"marks", "gray", "contrast"}
    assert scored.details["gray"].tolist() == scored.values.tolist() == GRAYS


def test_geneval_is_trained_on_its_mode_and_logs_all_three():
    reward = Reward.of(GenEval("folder", mode="strict"))
    assert reward.columns(0) == ("geneval", "official", "strict", "flow_grpo")
    assert dict(reward.weights) == {"geneval": 1.0}


def test_a_term_of_a_composite_logs_its_score_alone():
    both = Composite([Term(Marks()), Term(Brightness(), weight=0)])
    assert both.columns(0) == ("marks", "brightness")
    assert both.score(REQUEST).details.keys() == {"marks", "brightness"}


def test_a_nested_composite_is_one_term():
    inner = Composite([Term(Two(), weight=2), Term(Brightness())])
    outer = Composite([Term(inner, name="inner"), Term(Two(), weight=0)])
    assert outer.score(REQUEST).values.tolist() == pytest.approx([0, 2.2, 4.4])


def test_prompts_and_weights_of_a_single_scorer():
    class Picky(Brightness):
        def check_prompt(self, prompt: str, metadata: object) -> None:
            raise ValueError("cannot be scored")

        def weight_bytes(self) -> int:
            return 7

    with pytest.raises(ValueError, match=r"^reward 'picky' cannot score the prompt 'a': cannot be scored$"):
        Reward.of(Picky()).check_prompt("a", {})
    assert Reward.of(Picky()).weight_bytes() == 7
    assert Reward.of(Two()).weight_bytes() is None
    assert Composite([Term(Picky()), Term(Two())]).weight_bytes() is None


class Looks(Brightness):
    """Looks up what not all metadata have."""

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:
        if metadata["style"] == "broken":
            raise GuardlitError("the list of styles cannot be read")
        if metadata["style"] == "odd":
            raise ValueError("its style is odd;\nwrite plain")


@pytest.mark.parametrize(
    ("scorer", "called", "expected"),
    [
        (Looks(), "", "reward 'looks' cannot score the prompt 'a cat': "),
        (Looks(), "gold scorer 'x'", "gold scorer 'x' cannot score the prompt 'a cat': "),
        (Composite([Term(Two()), Term(Looks(), name="style")]), "", "reward 'style' cannot score the prompt 'a cat': "),
        (
            Composite([Term(Looks())]),
            "gold scorer 'x'",
            "gold scorer 'x', reward 'looks' cannot score the prompt 'a cat': ",
        ),
    ],
)
def test_a_refusal_names_scorer_prompt_and_reason_in_one_line(scorer, called, expected):
    assert scorer.refusal(Prompt("a cat"), called) == f"{expected}KeyError: 'style'"
    assert scorer.refusal(Prompt("a cat", {"style": "odd"}), called) == f"{expected}its style is odd; write plain"
    assert scorer.refusal(Prompt("a cat", {"style": "plain"}), called) == ""
    with pytest.raises(GuardlitError, match=r"^the list of styles cannot be read$"):
        scorer.refusal(Prompt("a cat", {"style": "broken"}), called)


def test_a_refusal_quotes_the_beginning_of_a_long_prompt():
    assert f"the prompt '{'x' * 77}...': KeyError" in Looks().refusal(Prompt("x" * 2000))


def test_an_error_of_a_single_scorer_is_raised():
    class Hopeless(Two):
        def score(self, request: RewardRequest) -> RewardResult:
            raise GuardlitError("wrong weights")

    with pytest.raises(GuardlitError, match="wrong weights"):
        Reward.of(Hopeless()).score(REQUEST)


@pytest.mark.parametrize("stuck", ["a", "b"])
def test_every_term_is_closed_although_one_raises(stuck: str):
    closed: list[str] = []

    class Closing(Two):
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)
            if self.name == stuck:
                raise OSError("already gone")

    with pytest.raises(OSError, match="already gone"):
        Composite([Term(Closing("a")), Term(Closing("b"))]).close()
    assert sorted(closed) == ["a", "b"]


def test_counters_are_named_by_term():
    class Counting(Two):
        def counters(self) -> dict[str, float]:
            return {"requests": 2.0}

    assert Reward.of(Counting()).counters() == {"counting/requests": 2.0}


@pytest.mark.parametrize(
    "path", ["PickScore", "guardlit.rewards.PickScore", "guardlit.rewards.clip.PickScore", "guardlit.rewards.OCR"]
)
def test_short_and_long_names_in_yaml(path: str):
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_subclass_arguments(Scorer, "reward")
    reward = parser.instantiate(parser.parse_object({"reward": {"class_path": path}})).reward
    assert type(reward).__name__ == path.rpartition(".")[2]


@pytest.mark.parametrize("room", ["clip", "digits", "geneval", "ocr", "remote"])
def test_each_room_exports_its_scorers(room: str):
    """So that `class_path: guardlit.rewards.digits.DigitGold` and `class_path: guardlit.rewards.DigitGold` are one."""
    module = importlib.import_module(f"guardlit.rewards.{room}")
    assert re.fullmatch(r".+\. Imports .+\.", str(module.__doc__))
    scorers = [cls for cls in vars(guardlit.rewards).values() if inspect.isclass(cls) and issubclass(cls, Scorer)]
    mine = [cls for cls in scorers if cls.__module__.startswith(module.__name__)]
    assert mine
    assert all(getattr(module, cls.__name__) is cls for cls in mine)


def test_features_of_the_asked_term_are_kept():
    reward, rows = Composite([Term(Two()), Term(Brightness(), weight=0, every=2)]), torch.ones(3, 4)
    found = {name: RewardResult.from_values(torch.ones(3), features=rows * k) for k, name in enumerate(reward.terms)}
    assert reward.combine(found).features is None
    assert torch.equal(reward.combine(found, "brightness").features, rows)


def test_a_term_that_leaves_rounds_out_gives_no_features(monkeypatch):
    monkeypatch.setattr(Brightness, "embeds_images", True)
    reward = Composite([Term(Two()), Term(Brightness(), weight=0, every=2)])
    with pytest.raises(GuardlitError, match=r"^model.advantage.diversity=brightness: .* every 2 rounds; set its"):
        reward.check_features("brightness")
    Composite([Term(Two()), Term(Brightness(), weight=0)]).check_features("brightness")
