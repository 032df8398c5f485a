"""The bundled signs: what is drawn, what PP-OCR reads, and a base model with head-room."""

from __future__ import annotations

import itertools
import json
import random
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from guardlit.assets import resolve
from guardlit.rewards.words import WordBackground, WordColor, WordRealism
from guardlit.rewards.words.scorers import SCORERS
from guardlit.sde import FlowSDE
from guardlit.tiny_world.drawing import draw
from guardlit.tiny_world.words import captions, signs
from guardlit.tiny_world.words.measure import asked_signs, measure, scores
from guardlit.tiny_world.words.prompts import all_prompts, write_prompts
from guardlit.tiny_world.words.scorers import to_tensor
from guardlit.types import Prompt

ASSETS = Path(str(files("guardlit.assets")))
SIGN = signs.Sign("K4", "red", "brick", signs.FONTS[0])


@pytest.fixture(scope="module")
def pipeline():
    return StableDiffusion3Pipeline.from_pretrained(resolve("guardlit://words"), local_files_only=True)


def about(folder):
    return json.loads((ASSETS / folder / "about.json").read_text())


def test_a_picture_is_a_function_of_sign_and_seed():
    first, again, other = (signs.draw_sign(SIGN, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("color", signs.COLORS)
def test_the_plate_has_its_color(color):
    picture = signs.draw_sign(signs.Sign("44", color, "grass", signs.FONTS[0]), np.random.default_rng(5)).astype(float)
    border = picture[24:40, 8:11].mean(axis=(0, 1))  # left of the text, inside the border
    nearest = min(signs.COLORS, key=lambda name: np.square(np.array(signs.COLORS[name]) - border).sum())
    assert nearest == color


@pytest.mark.parametrize("background", signs.BACKGROUNDS)
def test_every_background_has_a_texture_at_a_random_place(background):
    first, second = (signs.BACKGROUNDS[background](np.random.default_rng(seed)) for seed in (1, 2))
    assert first.shape == (64, 64, 3)
    assert np.ptp(first, axis=(0, 1)).max() > 15
    assert not np.array_equal(first, second)
    flat = signs.draw_sign(
        signs.Sign("44", "red", background, signs.FONTS[0]), np.random.default_rng(1), textured=False
    )
    textured = signs.draw_sign(signs.Sign("44", "red", background, signs.FONTS[0]), np.random.default_rng(1))
    assert flat[:8].astype(float).std(axis=(0, 1)).max() < textured[:8].astype(float).std(axis=(0, 1)).max()


def test_the_text_changes_the_picture_inside_the_plate_only():
    one, other = (
        signs.draw_sign(signs.Sign(t, *list(vars(SIGN).values())[1:]), np.random.default_rng(3)) for t in ("44", "RR")
    )
    changed = np.argwhere((one != other).any(axis=2))
    assert changed.min() >= 8
    assert changed.max() <= 56


def test_captions_name_what_a_sign_shows_with_some_wrong_characters():
    rng, sign = random.Random(0), SIGN
    drawn = [captions.draw_caption(sign, rng) for _ in range(2000)]
    empty = sum(not caption for caption in drawn) / len(drawn)
    assert empty == pytest.approx(captions.PROMPT_DROPOUT, abs=0.03)
    named = [caption for caption in drawn if caption]
    assert all(c.count('"') == 2 for c in named)
    assert {word for c in named for word in c.split('"')[0].split()} == {"a", "red", "sign", "that", "says"}
    assert {c.split('"')[2] for c in named} == {"", " on brick"}
    right = np.mean([c.split('"')[1][0] == "K" for c in named])
    wrong = captions.WRONG_CHARACTERS * (1 - 1 / len(signs.ALPHABET))
    assert right == pytest.approx(1 - wrong, abs=0.03)


def test_every_word_and_every_character_of_a_text_is_one_token(pipeline):
    for first, second in itertools.product(signs.ALPHABET, repeat=2):
        caption = captions.prompt(signs.Sign(first + second, "yellow", "stone", ""))
        assert len(pipeline.tokenizer(caption).input_ids) == 13
        assert len(pipeline.tokenizer_2(caption).input_ids) == 13
        pieces = pipeline.tokenizer_3.tokenize(caption)
        assert pieces[pieces.index('"') + 1 : -3] == [first, second]
        assert len(pieces) + 1 <= captions.MAX_TOKENS


def test_the_prompts_are_distinct_and_every_scorer_takes_them(tmp_path):
    write_prompts(tmp_path)
    read = []
    for name in ("words.jsonl", "words_validation.jsonl"):
        shipped = (ASSETS / "prompts" / name).read_text()
        assert shipped == (tmp_path / name).read_text()
        read.append([json.loads(line)["prompt"] for line in shipped.splitlines()])
    assert tuple(read) == all_prompts()
    assert [len(part) for part in read] == [120, 20]
    assert len({*read[0], *read[1]}) == 140
    for text in (*read[0], *read[1]):
        assert all(scorer().accepts(Prompt(text, {})) for scorer in (WordColor, WordBackground, WordRealism))


def test_images_are_a_function_of_the_seed(pipeline):
    texts = all_prompts()[1][:2]
    first, again, other = (draw(pipeline, texts, FlowSDE(0.7), seed) for seed in (1, 1, 2))
    assert first.shape == (2, 3, 64, 64)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pp_ocr_reads_real_signs_and_gold_knows_them():
    asked = asked_signs(96, seed=5)
    rng = np.random.default_rng(6)
    images = to_tensor(np.stack([signs.draw_sign(sign, rng) for sign in asked]))
    found = scores(images, [captions.prompt(sign) for sign in asked], SCORERS)
    assert found["ocr"] >= 0.95
    assert found["wordcolor_success"] >= 0.98
    assert found["wordbackground_success"] >= 0.98


def test_the_base_model_leaves_head_room_for_training(pipeline):
    found = measure(pipeline, SCORERS, 0.7, 96, seed=7)
    assert 0.4 <= found["ocr"] <= 0.75  # 96 images; the recorded measurement has more
    assert found["wordcolor_success"] >= 0.8
    assert found["wordbackground_success"] >= 0.8


def test_the_recorded_measurements_are_in_the_promised_bands():
    base = about("words")["measured"]["flow_sde_0.7_10_steps"]
    assert 0.5 <= base["ocr"] <= 0.65
    real, *corrupted = about("words_scorers")["measured"].values()
    assert real["ocr"] > 0.95
    assert all(defect["wordrealism"] > real["wordrealism"] for defect in corrupted)
    assert real["wordrealism"] < base["wordrealism"]
