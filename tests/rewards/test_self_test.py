"""The start-up test that every scorer has."""

from __future__ import annotations

import pytest
import torch
from brightness import Brightness
from torch import nan

from guardlit.errors import GuardlitError
from guardlit.rewards import DigitDiversity, DigitGold, DigitProbability, DigitRealism, JPEGCompressibility, Scorer
from guardlit.rewards.base import two_images
from guardlit.types import Prompt, RewardRequest, RewardResult

PROMPTS = [Prompt("nothing to count"), Prompt("a handwritten seven")]


class Answers(Brightness):
    """Gives two values, or raises."""

    def __init__(self, *values: float, distinguishes: bool = False, error: Exception | None = None) -> None:
        super().__init__()
        self.values, self.distinguishes, self.error = values, distinguishes, error

    def score(self, request: RewardRequest) -> RewardResult:
        if self.error is not None:
            raise self.error
        assert not torch.equal(*request.images)
        return RewardResult.from_values(torch.tensor(self.values))


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        (Answers(1.0, nan), "on 'nothing to count': answers: the score is no number"),
        (Answers(1.0, error=OSError("no such socket")), "answers: OSError: no such socket"),
        (Answers(0.5, 0.5, distinguishes=True), "two very different images both get 0.5; are these the right weights?"),
    ],
)
def test_a_scorer_that_does_not_score_is_found_out(scorer: Scorer, expected: str):
    with pytest.raises(GuardlitError) as caught:
        scorer.self_test(PROMPTS)
    assert str(caught.value).startswith("reward 'answers' fails its start-up test on ")
    assert expected in str(caught.value)


def test_two_zeros_are_fine_where_two_images_may_rightly_get_them():
    assert Answers(0.0, 0.0).self_test(PROMPTS).tolist() == [0, 0]


@pytest.mark.parametrize("cls", [DigitProbability, DigitGold, DigitRealism, DigitDiversity, JPEGCompressibility])
def test_the_scorers_pass_on_the_first_prompt_that_fits(cls: type[Scorer]):
    scorer = cls()
    scorer.setup(torch.device("cpu"))
    state = torch.get_rng_state()
    values = scorer.self_test(PROMPTS)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(values, scorer.self_test(PROMPTS))
    assert values.isfinite().all()
    assert (values[0] != values[1]) == (cls is not DigitDiversity)  # a distance from each to the other


def test_promised_features_must_be_there():
    class Promises(Brightness):
        embeds_images = True

    with pytest.raises(GuardlitError, match=r"reward 'promises' fails its start-up test: .* score.. gave no features"):
        Promises().self_test(PROMPTS)


def test_features_have_a_row_per_image():
    class Short(Brightness):
        embeds_images = True

        def score(self, request: RewardRequest) -> RewardResult:
            return self.result(torch.zeros(2), features=torch.ones(1, 3))

    with pytest.raises(GuardlitError, match=r"'short': score\(\) gave features \(1, 3\) for 2 images; give one row"):
        Short().self_test(PROMPTS)


def test_no_prompt_that_fits_is_a_mistake():
    with pytest.raises(GuardlitError, match="reward 'digitgold': none of the 1 prompts can be scored by it"):
        DigitGold().self_test(PROMPTS[:1])


def test_the_two_images_are_pictures():
    images = two_images()
    assert (images.shape, images.dtype) == ((2, 3, 256, 256), torch.uint8)
    assert images[1].unique().tolist() == [0, 255]
    assert images[0, :, 0, 255].tolist() == [255, 0, 0]
