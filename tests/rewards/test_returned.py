"""What a user's `score` may return, and what is said of anything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from brightness import Brightness
from guardlit_callbacks import GoldScore

from guardlit.errors import GuardlitError
from guardlit.rewards import Reward, Term
from guardlit.types import Prompt, RewardRequest, RewardResult

REQUEST = RewardRequest(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a", "b"], [{}, {}])


class Returns(Brightness):
    """Returns what it is given."""

    name = "own"

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def score(self, request: RewardRequest) -> Any:
        return self.value


class Wraps(Returns):
    """The same by `result`."""

    name = "own"

    def score(self, request: RewardRequest) -> RewardResult:
        return self.result(self.value)


NUMBERS = [
    torch.tensor([0.5, 1.0], requires_grad=True),
    torch.tensor([0.5, 1.0], dtype=torch.bfloat16),
    np.array([0.5, 1.0]),
    [0.5, True],
    (np.float64(0.5), 1),
    [torch.tensor(0.5), torch.tensor(1.0)],
]


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("kind", [Returns, Wraps])
def test_numbers_of_any_kind_are_taken(kind, value):
    for result in (kind(value).attempt(REQUEST), Reward.of(kind(value)).score(REQUEST), kind(value).checked(REQUEST)):
        assert result.values.dtype == torch.float32
        assert result.values.tolist() == [0.5, 1.0]
        assert result.valid.tolist() == [True, True]
        assert result.provenance


def test_booleans_are_zero_and_one_and_nan_has_failed():
    assert Returns(np.array([True, False])).attempt(REQUEST).values.tolist() == [1, 0]
    result = Returns([float("nan"), 1.0]).attempt(REQUEST)
    assert result.valid.tolist() == [False, True]
    assert result.reason == "own: the score is no number"


def test_a_result_is_taken_with_its_details_and_lists_in_it():
    details = {"parts": torch.tensor([1.0, 2.0])}
    result = Returns(RewardResult([0.5, 1.0], np.array([True, False]), details, {"a": "b"}, "too dark")).attempt(
        REQUEST
    )
    assert result.values[0] == 0.5
    assert result.valid.tolist() == [True, False]
    assert result.details == details
    assert (result.provenance, result.reason) == ({"a": "b"}, "own: too dark")


WRONG = [
    (None, "None"),
    (0.5, r"a single number \(0.5\)"),
    ([0.5], "a list of 1 numbers"),
    (torch.zeros(2, 1), r"a Tensor of shape \(2, 1\)"),
    (np.zeros((2, 3)), r"an ndarray of shape \(2, 3\)"),
    ([0.5, None], "a list that holds something else than numbers"),
    ({"values": [0.5, 1.0]}, "a dict"),
]


@pytest.mark.parametrize(("value", "found"), WRONG)
def test_anything_else_is_one_line_that_says_what_to_return(value, found):
    said = rf"reward 'own': score\(\) returned {found} for 2 images; return self.result\(values\) with one number per"
    for act in (Returns(value).attempt, Returns(value).checked, Term(Returns(value)).attempt):
        with pytest.raises(GuardlitError, match=said) as error:
            act(REQUEST)
        assert "\n" not in str(error.value)
    if found != "a list of 1 numbers":
        with pytest.raises(GuardlitError, match=rf"reward 'own': self.result\(\) got {found}; give it one number per"):
            Wraps(value).attempt(REQUEST)


def test_an_exception_of_an_own_scorer_has_its_place():
    class Divides(Brightness):
        name = "own"

        def score(self, request: RewardRequest) -> RewardResult:
            return self.result([1 / 0] * len(request))

    with pytest.raises(GuardlitError) as error:
        Divides().self_test([Prompt("a red cup")])
    line = Divides.score.__code__.co_firstlineno + 1
    said = f"own: ZeroDivisionError: division by zero ({__file__}, line {line})"
    assert str(error.value) == f"reward 'own' fails its start-up test on 'a red cup': {said}"


def test_a_gold_score_takes_the_same():
    batch = {"images": REQUEST.images, "prompts": ["a", "b"]}
    for value in NUMBERS:
        gold = GoldScore([Returns(value)], proxy=None)
        assert [sample["own"] for sample in gold.collect(batch)] == [0.5, 1.0]
