"""Whatever holds one number per image becomes a column; anything else is refused by what it is."""

import numpy as np
import pytest
import torch
from guardlit_callbacks.tools.lightning import MisconfigurationException
from guardlit_callbacks.tools.scores import column
from guardlit_callbacks.tools.scoring import ScoreRequest, score

REQUEST = ScoreRequest(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ["a", "b"], [{}, {}])


class Returns:
    """A scorer that returns what it is given."""

    def __init__(self, value):
        self.value = value

    def setup(self, device):
        pass

    def score(self, request):
        return self.value


class Both:
    """A result with values and valid."""

    reason = "the server did not answer"

    def __init__(self, values, valid):
        self.values, self.valid = values, valid


@pytest.mark.parametrize(
    "returned",
    [
        torch.tensor([0.5, 1.0]),
        torch.tensor([0.5, 1.0], requires_grad=True),
        torch.tensor([0.5, 1.0], dtype=torch.bfloat16),
        np.array([0.5, 1.0]),
        np.array([0.5, 1.0], dtype=np.float16),
        [0.5, 1],
        (np.float32(0.5), True),
        [torch.tensor(0.5), torch.tensor(1.0, requires_grad=True)],
        Both(np.array([0.5, 1.0]), [True, True]),
        Both([0.5, 1.0], torch.tensor([1, 1])),
    ],
)
def test_numbers_of_any_kind_are_taken(returned):
    values, reason = score(Returns(returned), "own", REQUEST)
    assert values.dtype == np.float64
    assert values.tolist() == [0.5, 1.0]
    assert reason in ("", Both.reason)


def test_booleans_are_zero_and_one():
    assert score(Returns(torch.tensor([True, False])), "own", REQUEST)[0].tolist() == [1, 0]
    assert column([False, True]).tolist() == [0, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_finite_number_has_failed(bad):
    values, _ = score(Returns([bad, 1.0]), "own", REQUEST)
    assert np.isnan(values).tolist() == [True, False]


def test_invalid_values_have_failed_with_a_reason():
    values, reason = score(Returns(Both([0.5, 1.0], [False, True])), "own", REQUEST)
    assert np.isnan(values).tolist() == [True, False]
    assert reason == "the server did not answer"


@pytest.mark.parametrize(
    ("returned", "found"),
    [
        (None, "None"),
        (0.5, r"a single number \(0.5\)"),
        (torch.tensor(0.5), r"a single number \(0.5\)"),
        ([0.5], "a list of 1 numbers"),
        ([], "a list of 0 numbers"),
        (torch.zeros(3), r"a Tensor of shape \(3,\)"),
        (torch.zeros(2, 1), r"a Tensor of shape \(2, 1\)"),
        (np.zeros((1, 2)), r"an ndarray of shape \(1, 2\)"),
        ([[0.5], [1.0]], r"a list of shape \(2, 1\)"),
        ([0.5, None], "a list that holds something else than numbers"),
        (["0.5", "1.0"], "a list that holds something else than numbers"),
        ([[0.5], [1.0, 2.0]], "a list that holds something else than numbers"),
        (torch.zeros(2, dtype=torch.complex64), "a Tensor that holds something else than numbers"),
        ({"a": 0.5, "b": 1.0}, "a dict"),
        ("high", "a str"),
        (Both([0.5], [True]), "a list of 1 numbers"),
        (Both([0.5, 1.0], None), "None"),
    ],
)
def test_anything_else_is_one_line_that_says_what_to_return(returned, found):
    line = rf"score\(\) of 'own' \(Returns\) returned {found} for 2 images; return one number per image, \(2,\)"
    with pytest.raises(MisconfigurationException, match=line) as error:
        score(Returns(returned), "own", REQUEST)
    assert "\n" not in str(error.value)
