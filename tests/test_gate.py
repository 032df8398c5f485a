"""The gate of the KL penalty: ranks, uncertainty, threshold and adaptation, against plain Python and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.gate import Gating, UncertaintyGate, ranks, uncertainty

EVERY = {"ocr": 1, "aesthetic": 1, "imagereward": 1}


def drawn(images: int, seed: int) -> dict[str, Tensor]:
    """Scores of three terms; those of the proxy are fractions with many ties, as OCR's."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.randn(images, generator=generator) for name in EVERY}
    return {**scores, "ocr": (scores["ocr"].sigmoid() * 4).round() / 4}


def ranks_by_counting(scores: list[float]) -> list[float]:
    return [1 + sum(o > s for o in scores) + (sum(o == s for o in scores) - 1) / 2 for s in scores]


def gated_by_counting(scores: dict[str, Tensor], fraction: float) -> tuple[list[int], float]:
    """The images above the percentile, and the mean of u >= 0, in float64."""
    by = {name: ranks_by_counting(values.tolist()) for name, values in scores.items()}
    doubts = [(a + i) / 2 - o for o, a, i in zip(by["ocr"], by["aesthetic"], by["imagereward"], strict=True)]
    positive = [u for u in doubts if u >= 0]
    threshold = np.percentile(np.array(positive), 100 - 100 * fraction)
    return [i for i, u in enumerate(doubts) if u > threshold], float(np.mean(positive))


def test_the_highest_score_has_rank_1_and_equal_ones_share_the_mean():
    assert ranks(torch.tensor([0.5, 2.0, 0.5, -1.0, 0.5])).tolist() == [3, 1, 3, 5, 3]
    scores = drawn(50, 1)["ocr"]
    assert ranks(scores).tolist() == ranks_by_counting(scores.tolist())


def test_an_image_is_doubted_where_the_proxy_alone_likes_it():
    """The paper's sign: the first image is the proxy's favorite and the auxiliaries' last."""
    proxy, others = torch.tensor([3.0, 2.0, 1.0]), [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([-9.0, 5.0, 7.0])]
    assert uncertainty(proxy, others).tolist() == [2, 0, -2]
    gating = Gating(UncertaintyGate("ocr", fraction=0.2), EVERY)
    scores = dict(zip(EVERY, [proxy, *others], strict=True))
    assert gating.weights(scores).tolist() == [1, 0, 0]


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5, 1.0])
def test_the_images_above_the_percentile(fraction: float):
    scores = drawn(96, 2)
    gating = Gating(UncertaintyGate("ocr", fraction=fraction, adapt=False), EVERY)
    weights = gating.weights(scores)
    gated, _ = gated_by_counting(scores, fraction)
    assert weights.nonzero().flatten().tolist() == gated
    assert set(weights.tolist()) <= {0.0, 1.0}
    assert bool(gated) == (fraction > 0.02)  # the two most doubted are equal, and neither is above the percentile
    assert weights.dtype == torch.float32
    assert (gating.fraction, gating.means) == (fraction, [])


def test_failed_images_are_in_no_ranking():
    """Of either kind; the others are ranked as if there were no failed ones."""
    scores = drawn(40, 3)
    scores["aesthetic"][7], scores["ocr"][11] = math.nan, math.nan
    kept = [i for i in range(40) if i not in (7, 11)]
    gating = Gating(UncertaintyGate("ocr", fraction=0.2), EVERY)
    gated, mean = gated_by_counting({name: values[kept] for name, values in scores.items()}, 0.2)
    weights = gating.weights(scores)
    assert weights.nonzero().flatten().tolist() == [kept[i] for i in gated]
    assert gating.means == [pytest.approx(mean, rel=1e-12)]


def test_auxiliaries_may_be_named():
    scores = drawn(40, 4)
    found = Gating(UncertaintyGate("ocr", ("aesthetic",)), EVERY).weights(scores)
    copied = {**scores, "imagereward": scores["aesthetic"]}
    assert torch.equal(found, Gating(UncertaintyGate("ocr"), EVERY).weights(copied))
    assert not torch.equal(found, Gating(UncertaintyGate("ocr"), EVERY).weights(scores))


def test_the_fraction_follows_the_uncertainty_of_the_last_20_rounds():
    """Scores that agree more and less from round to round; the rule is written out here."""
    gating, expected, means = Gating(UncertaintyGate("ocr"), EVERY), 0.1, []
    seen = set()
    for number in range(60):
        scores, noise = drawn(64, number), 0.2 + math.sin(number / 4) ** 2
        scores["ocr"] = scores["aesthetic"] + noise * scores["imagereward"] + noise * scores["ocr"]
        _, mean = gated_by_counting(scores, 0.5)
        if means and mean > max(means[-20:]):
            expected = min(expected * 1.1, 0.2)
        elif means and mean < min(means[-20:]):
            expected = max(expected * 0.9, 0.02)
        means.append(mean)
        weights = gating.weights(scores)
        assert gating.fraction == pytest.approx(expected, rel=1e-12)
        assert weights.nonzero().flatten().tolist() == gated_by_counting(scores, gating.fraction)[0]
        assert gating.means == [pytest.approx(m, rel=1e-12) for m in means[-20:]]
        seen.add(round(expected, 6))
    assert len(seen) > 4
    restored = Gating(UncertaintyGate("ocr"), EVERY)
    restored.load_state_dict(gating.state_dict())
    scores = drawn(64, 99)
    assert torch.equal(restored.weights(scores), gating.weights(scores))
    assert restored.state_dict() == gating.state_dict()
    restored.load_state_dict({})  # of a checkpoint without a gate
    assert restored.state_dict() == {"fraction": 0.1, "means": []}


@pytest.mark.parametrize(("rising", "limit"), [(True, 0.2), (False, 0.02)])
def test_the_fraction_stays_within_its_limits(rising: bool, limit: float):
    gating = Gating(UncertaintyGate("ocr"), EVERY)
    proxy = torch.arange(64.0)
    for number in range(1, 40):
        swapped = number if rising else 40 - number
        other = proxy.clone()
        other[:swapped], other[-swapped:] = proxy[-swapped:], proxy[:swapped]
        gating.weights({"ocr": proxy, "aesthetic": other, "imagereward": other})
    assert gating.fraction == limit


def test_scores_that_agree_gate_nothing_and_failed_rounds_change_nothing():
    gating, scores = Gating(UncertaintyGate("ocr"), EVERY), torch.arange(8.0)
    assert gating.weights(dict.fromkeys(EVERY, scores)).tolist() == [0] * 8
    before = gating.state_dict()
    assert gating.weights(dict.fromkeys(EVERY, torch.full((8,), math.nan))).tolist() == [0] * 8
    assert gating.state_dict() == before


@pytest.mark.parametrize(
    ("settings", "terms", "line"),
    [
        ({"proxy": "ocr"}, {"ocr": 1}, "kl.gate compares the proxy .* no other term"),
        ({"proxy": "orc"}, EVERY, r"kl.gate.proxy=orc is no term of the reward, .*ocr, aesthetic, imagereward"),
        ({"proxy": "ocr", "auxiliaries": ("ocr",)}, EVERY, "kl.gate.auxiliaries: ocr is no other term"),
        ({"proxy": "ocr", "auxiliaries": ("hps",)}, EVERY, "kl.gate.auxiliaries: hps is no other term"),
        ({"proxy": "ocr"}, {"ocr": 1, "hps": 5}, "kl.gate: hps is scored every 5 rounds"),
        ({"proxy": "ocr"}, {"ocr": 3, "hps": 1}, "kl.gate: ocr is scored every 3 rounds"),
        ({"proxy": "ocr", "fraction": 0.0}, EVERY, "kl.gate.fraction=0.0 must be above 0"),
        ({"proxy": "ocr", "fraction": 0.5}, EVERY, r"kl.gate.limits=\[0.02, 0.2\] must rise .* enclose fraction=0.5"),
    ],
)
def test_a_gate_that_cannot_work_is_one_line(settings: dict, terms: dict, line: str):
    with pytest.raises(GuardlitError, match=f"^{line}") as error:
        Gating(UncertaintyGate(**settings), terms)
    assert "\n" not in str(error.value)
