"""The digit scorers on real digits, on broken pictures and on bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from guardlit.assets import resolve
from guardlit.errors import GuardlitError
from guardlit.rewards.bundled import rms_distances
from guardlit.rewards.digits.networks import DIGITS, to_gray, upscale
from guardlit.rewards.digits.scorers import (
    SCORERS,
    DigitDiversity,
    DigitGold,
    DigitProbability,
    DigitRealism,
    asked_digit,
)
from guardlit.types import Prompt, RewardRequest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def real():
    """Pictures (1797, 3, 32, 32) uint8 and labels (1797,)."""
    stored = load_file(resolve(SCORERS) / "real.safetensors")
    return upscale(stored["images"]).expand(-1, 3, -1, -1), stored["labels"].long()


def request_of(images, labels):
    return RewardRequest(images, [f"a handwritten {DIGITS[label]}" for label in labels], [{} for _ in labels])


def ready(scorer):
    scorer.setup(CPU)
    return scorer


@pytest.mark.parametrize(("scorer", "floor"), [(DigitGold, 0.95), (DigitProbability, 0.93)])
def test_classifiers_know_real_digits(real, scorer, floor):
    result = ready(scorer()).score(request_of(*real))
    assert result.valid.all()
    assert result.details["success"].mean() >= floor
    assert result.values.mean() >= 0.9
    assert bool(((result.values >= 0) & (result.values <= 1)).all())


def test_a_wrong_digit_scores_low(real):
    images, labels = real
    for scorer in (DigitGold, DigitProbability):
        result = ready(scorer()).score(request_of(images[:200], (labels[:200] + 1) % 10))
        assert result.values.mean() < 0.05
        assert result.details["success"].mean() < 0.05


def test_gold_resists_noise_that_misleads_the_proxy(real):
    images, labels = real
    noise = 64 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = request_of((images + noise).clamp(0, 255).to(torch.uint8), labels)
    gold, proxy = (ready(scorer()).score(noisy).details["success"].mean() for scorer in (DigitGold, DigitProbability))
    assert gold > proxy
    assert gold > 0.95


def test_realism_of_a_real_digit_is_zero_and_grows_with_distance(real):
    images, labels = real
    scorer = ready(DigitRealism())
    assert scorer.score(request_of(images[::60], labels[::60])).values.abs().max() == 0
    black, white = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    distances = scorer.score(request_of(torch.cat([black, white]), torch.tensor([0, 0]))).values
    gray = to_gray(images)
    expected = torch.stack([(level - gray).square().mean((1, 2, 3)).sqrt().min() for level in (0, 1)])
    torch.testing.assert_close(distances, expected)


def test_rms_distances_against_the_definition():
    a, b = torch.rand(3, 1, 4, 4), torch.rand(5, 1, 4, 4)
    expected = (a[:, None] - b[None]).square().mean(dim=(2, 3, 4)).sqrt()
    torch.testing.assert_close(rms_distances(a, b), expected)


def test_diversity_is_the_mean_distance_within_a_prompt():
    levels = torch.tensor([0, 51, 255, 102], dtype=torch.uint8)
    images = levels[:, None, None, None].expand(-1, 3, 32, 32)
    result = ready(DigitDiversity()).score(RewardRequest(images, ["a", "a", "a", "alone"], [{}] * 4))
    torch.testing.assert_close(result.values[:3], torch.tensor([0.6, 0.5, 0.9]))
    assert result.valid.tolist() == [True, True, True, False]
    assert result.values[3].isnan()


def test_diversity_of_equal_pictures_is_exactly_zero(real):
    images, _ = real
    request = RewardRequest(images[:1].expand(4, -1, -1, -1), ["one"] * 4, [{}] * 4)
    assert ready(DigitDiversity()).score(request).values.tolist() == [0.0] * 4


@pytest.mark.parametrize("scorer", [DigitProbability, DigitGold, DigitRealism])
def test_batch_equals_one_by_one_and_permutes(real, scorer):
    images, labels = real[0][:7], real[1][:7]
    scorer = ready(scorer())
    together = scorer.score(request_of(images, labels)).values
    singles = [scorer.score(request_of(images[i : i + 1], labels[i : i + 1])).values for i in range(7)]
    torch.testing.assert_close(together, torch.cat(singles), rtol=1e-5, atol=1e-6)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    permuted = scorer.score(request_of(images[order], labels[order])).values
    torch.testing.assert_close(permuted, together[order], rtol=1e-5, atol=1e-6)


def test_diversity_permutes(real):
    images, prompts = real[0][:6], ["a", "b", "a", "b", "a", "b"]
    order = [5, 2, 0, 3, 1, 4]
    scorer = ready(DigitDiversity())
    values = scorer.score(RewardRequest(images, prompts, [{}] * 6)).values
    permuted = scorer.score(RewardRequest(images[order], [prompts[i] for i in order], [{}] * 6)).values
    torch.testing.assert_close(permuted, values[order])


def test_scoring_does_not_change_the_global_random_state(real):
    state = torch.get_rng_state()
    for scorer in (DigitProbability, DigitGold, DigitRealism, DigitDiversity):
        ready(scorer()).score(request_of(real[0][:2], real[1][:2]))
    assert torch.equal(torch.get_rng_state(), state)


def test_pictures_of_another_size_are_scored_alike(real):
    images, labels = real[0][:64], real[1][:64]
    doubled = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    result = ready(DigitGold()).score(request_of(doubled, labels))
    assert result.details["success"].mean() > 0.9


@given(digit=st.integers(0, 9), template=st.sampled_from(["a {}", "draw {}, please", "The digit {}!", "{}"]))
def test_the_words_and_the_numeral_ask_for_the_same_digit(digit, template):
    word = DIGITS[digit]
    assert {asked_digit(template.format(form), {}) for form in (word, word.upper(), digit)} == {digit}


def test_metadata_wins_over_the_words():
    assert asked_digit("a handwritten seven", {"digit": 3}) == 3


@pytest.mark.parametrize("prompt", ["a cat", "", "a seventeen", "17", "a seven and an eight", "someone"])
def test_a_prompt_without_exactly_one_digit_is_refused_by_name(prompt):
    for scorer in (DigitProbability(), DigitGold()):
        why = scorer.refusal(Prompt(prompt))
        assert why.startswith(f"reward '{scorer.name}' cannot score the prompt {prompt!r}: it names ")


@pytest.mark.parametrize("digit", [10, -1, "7", 7.0, True, None])
def test_bad_metadata_is_refused(digit):
    with pytest.raises(ValueError, match="metadata has digit="):
        DigitGold().check_prompt("a seven", {"digit": digit})


@pytest.mark.parametrize("scorer", [DigitProbability, DigitGold, DigitRealism])
def test_missing_weights_are_named(scorer, tmp_path):
    with pytest.raises(GuardlitError, match=str(tmp_path)):
        scorer(str(tmp_path)).setup(CPU)


def test_broken_or_foreign_weights_are_named(tmp_path):
    (tmp_path / "gold.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(GuardlitError, match=r"gold\.safetensors: cannot be read"):
        DigitGold(str(tmp_path)).setup(CPU)
    save_file({"0.weight": torch.zeros(2)}, tmp_path / "gold.safetensors")
    with pytest.raises(GuardlitError, match=r"gold\.safetensors: these are not the weights of GoldNet"):
        DigitGold(str(tmp_path)).setup(CPU)


def test_nothing_is_loaded_before_setup(tmp_path):
    DigitGold(str(tmp_path / "absent"))  # a configuration may name a path that exists elsewhere


@pytest.mark.parametrize("scorer", [DigitGold, DigitProbability])
def test_features_are_what_the_last_layer_reads(real, scorer):
    images, labels = real[0][:20], real[1][:20]
    result = ready(scorer()).score(request_of(images, labels))
    stored = load_file(resolve(SCORERS) / scorer.file)
    last = sorted({key.rpartition(".")[0] for key in stored}, key=int)[-1]
    logits = result.features.double() @ stored[f"{last}.weight"].double().T + stored[f"{last}.bias"].double()
    expected = logits.softmax(1)[torch.arange(20), labels]
    torch.testing.assert_close(result.values.double(), expected, rtol=1e-5, atol=1e-6)
