"""The signs' gold scorers on held-out real signs, on corrupted ones and on bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from guardlit.assets import resolve
from guardlit.errors import GuardlitError
from guardlit.rewards.words.networks import BACKGROUNDS, COLORS, mmd, to_pixels
from guardlit.rewards.words.scorers import SCORERS, WordBackground, WordColor, WordDiversity, WordRealism, asked_for
from guardlit.tiny_world.words import signs
from guardlit.tiny_world.words.captions import prompt
from guardlit.tiny_world.words.measure import GROUP, asked_signs
from guardlit.tiny_world.words.scorers import DEFECTS, to_tensor
from guardlit.types import Prompt, RewardRequest

CPU = torch.device("cpu")
RED = 'a red sign that says "K4" on brick'


def ready(scorer):
    scorer.setup(CPU)
    return scorer


def request_of(images, prompts):
    return RewardRequest(images, prompts, [{}] * len(prompts))


def drawn(draw, asked, seed=71):
    rng = np.random.default_rng(seed)
    return to_tensor(np.stack([draw(sign, rng) for sign in asked]))


@pytest.fixture(scope="module")
def asked():
    """Signs of 24 prompts; no network has seen them."""
    return asked_signs(24 * GROUP, seed=70)


@pytest.fixture(scope="module")
def real(asked):
    return drawn(signs.draw_sign, asked)


@pytest.mark.parametrize("scorer", [WordColor, WordBackground])
def test_classifiers_know_held_out_signs(real, asked, scorer):
    result = ready(scorer()).score(request_of(real, [prompt(sign) for sign in asked]))
    assert result.valid.all()
    assert result.details["success"].mean() >= 0.98
    assert result.values.mean() >= 0.95
    assert bool(((result.values >= 0) & (result.values <= 1)).all())


@pytest.mark.parametrize(
    ("scorer", "other", "wrong", "choices"),
    [(WordColor, WordBackground, "color", COLORS), (WordBackground, WordColor, "background", BACKGROUNDS)],
)
def test_a_wrong_color_or_background_is_seen_by_its_scorer_alone(asked, scorer, other, wrong, choices):
    prompts = [prompt(sign) for sign in asked]
    moved = [replace(s, **{wrong: choices[(choices.index(getattr(s, wrong)) + 1) % len(choices)]}) for s in asked]
    request = request_of(drawn(signs.draw_sign, moved), prompts)
    assert ready(scorer()).score(request).values.mean() < 0.05
    assert ready(other()).score(request).values.mean() > 0.95
    far = ready(WordRealism()).score(request).values.mean()
    near = ready(WordRealism()).score(request_of(drawn(signs.draw_sign, asked), prompts)).values.mean()
    assert far > near + 0.1  # real signs, but not of what the prompt asks for


@pytest.mark.parametrize("defect", ["flat", "other_font", "blurred", "harsh"])  # the others hardly move it
def test_realism_sees_a_defect(real, asked, defect):
    prompts = [prompt(sign) for sign in asked]
    scorer = ready(WordRealism())
    corrupted = scorer.score(request_of(drawn(DEFECTS[defect], asked), prompts)).values.mean()
    assert corrupted > scorer.score(request_of(real, prompts)).values.mean() + 0.05


def test_realism_sees_a_group_with_one_font(real, asked):
    prompts = [prompt(sign) for sign in asked]
    scorer = ready(WordRealism())
    same = drawn(signs.draw_sign, [replace(sign, font=signs.FONTS[0]) for sign in asked])
    assert scorer.score(request_of(same, prompts)).values.mean() > scorer.score(request_of(real, prompts)).values.mean()


def test_realism_compares_the_images_of_a_prompt(real, asked):
    scorer = ready(WordRealism())
    assert scorer.compares_images
    prompts = [prompt(sign) for sign in asked[: 2 * GROUP]]
    both = scorer.score(request_of(real[: 2 * GROUP], prompts)).values
    first = scorer.score(request_of(real[:GROUP], prompts[:GROUP])).values
    torch.testing.assert_close(both[:GROUP], first)
    assert len(both.unique()) == 2
    order = torch.randperm(2 * GROUP, generator=torch.Generator().manual_seed(0))
    mixed = scorer.score(request_of(real[order], [prompts[i] for i in order])).values
    torch.testing.assert_close(mixed, both[order])


def test_the_kernel_distance_against_the_definition():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(3, 4, generator=generator).double(), torch.randn(5, 4, generator=generator).double()

    def mean_kernel(x, y):
        return sum(float(torch.exp(-(p - q).square().sum() / (2 * 0.5**2))) for p in x for q in y) / len(x) / len(y)

    expected = (mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)) ** 0.5
    assert float(mmd(a, b)) == pytest.approx(expected, rel=1e-6)
    assert float(mmd(a, a)) == pytest.approx(0, abs=1e-6)


def test_diversity_is_the_mean_distance_within_a_prompt(real):
    few = torch.cat([real[:3], real[:1]])
    values = ready(WordDiversity()).score(request_of(few, ["p", "p", "p", "q"])).values
    pixels = to_pixels(few)
    expected = [sum(float((pixels[i] - pixels[j]).square().mean().sqrt()) for j in range(3)) / 2 for i in range(3)]
    torch.testing.assert_close(values[:3], torch.tensor(expected))
    assert bool(values[3].isnan())


@pytest.mark.parametrize(
    ("text", "color", "background"),
    [
        (RED, "red", "brick"),
        ('A WHITE sign that says "RED" on Wood', "white", "wood"),
        ("green, on tiles", "green", "tiles"),
    ],
)
def test_prompts_are_read_outside_their_quotes(text, color, background):
    assert COLORS[asked_for(text, "color", COLORS)] == color
    assert BACKGROUNDS[asked_for(text, "background", BACKGROUNDS)] == background


@pytest.mark.parametrize("text", ['a sign that says "red" on brick', "a red and blue sign on brick"])
def test_a_prompt_that_names_no_color_or_two_is_refused(text):
    for scorer in (WordColor(), WordRealism()):
        assert "names" in scorer.refusal(Prompt(text, {}))
        assert "expected one of red, yellow" in scorer.refusal(Prompt(text, {}))
    assert WordBackground().accepts(Prompt(text, {}))


@pytest.mark.parametrize("scorer", [WordColor, WordRealism])
def test_files_of_another_network_or_none_are_one_line(tmp_path, scorer):
    with pytest.raises(GuardlitError, match="cannot be read as a safetensors file"):
        scorer(str(tmp_path)).setup(CPU)
    save_file({"real": torch.zeros(1)}, tmp_path / scorer.file)
    with pytest.raises(GuardlitError, match="these are not the weights of"):
        scorer(str(tmp_path)).setup(CPU)


def test_the_networks_names_are_those_of_the_distribution():
    assert tuple(signs.COLORS) == COLORS
    assert tuple(signs.BACKGROUNDS) == BACKGROUNDS


@pytest.mark.parametrize(("scorer", "head", "asked"), [(WordColor, "color", 0), (WordBackground, "background", 0)])
def test_features_are_what_the_last_layer_reads(scorer, head, asked):
    images = torch.randint(0, 256, (6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    result = ready(scorer()).score(request_of(images, [RED] * 6))
    stored = load_file(resolve(SCORERS) / scorer.file)
    logits = result.features.double() @ stored[f"{head}.weight"].double().T + stored[f"{head}.bias"].double()
    torch.testing.assert_close(result.values.double(), logits.softmax(1)[:, asked], rtol=1e-5, atol=1e-6)
