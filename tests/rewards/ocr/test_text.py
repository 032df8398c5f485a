"""The text that a prompt quotes, and its distance from the text that was read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guardlit.data.prompts import load_prompts
from guardlit.rewards import OCR
from guardlit.rewards.ocr.text import accuracy, quoted_texts

PUBLISHED = Path(__file__).parents[4] / "shared" / "prompts" / "ocr_test.txt"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "Open"', ["Open"]),
        ("a sign “Open”, lit", ["Open"]),
        ('"A" over “B c” over "d"', ["A", "B c", "d"]),
        ("""the dog's "Don't" sign""", ["Don't"]),
        ("a “Don’t” sign", ["Don’t"]),  # noqa: RUF001
        ('"""', None),
        ('a 12" vinyl "Hits"', None),
        ("a sign 'Open'", None),
        ("a sign ‘Open’", None),  # noqa: RUF001
        ("a sign", None),
        ("", None),
        ('a sign ""', None),
        ('a sign " \t"', None),
        ('"A" and ""', None),
        ('a sign "Open', None),
        ("a sign “Open", None),
        ("a sign Open”", None),
        ("”Open“", None),
        ('“Open"', None),
        ('“say "Open" now”', None),
    ],
)
def test_targets_are_the_texts_in_double_quotes(prompt, texts):
    if texts is not None:
        assert quoted_texts(prompt) == texts
        OCR().check_prompt(prompt, {})
        return
    with pytest.raises(ValueError, match=re.escape(repr(prompt))) as caught:
        OCR().check_prompt(prompt, {})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published prompts are not here")
def test_every_published_prompt_has_a_target():
    prompts = [prompt.text for prompt in load_prompts(str(PUBLISHED))]
    refused = []
    for number, prompt in enumerate(prompts, 1):
        try:
            assert quoted_texts(prompt)[0] == prompt.split('"')[1]
        except ValueError as error:
            refused.append(f"line {number}: {error}")
    assert len(prompts) == 1018
    assert refused == []


@pytest.mark.parametrize(
    ("target", "read", "value"),
    [
        ("Open", "OPEN", 1),
        ("Open", "we are o p e n", 1),  # spaces and what stands around play no part
        ("O p\te n", "open", 1),
        ("Open", "", 0),
        ("Open", "ope", 1 - 1 / 4),
        ("Open", "opens", 1),
        ("Open", "0pen", 1 - 1 / 4),
        ("Open", "op en!?", 1),
        ("Open", "opxn-and-much-more", 0),  # distance 15, capped at the length
        ("Open", "xyzw", 0),
        ("ab", "ba", 0),
        ("a", "b", 0),
        ("Café", "cafe", 1 - 1 / 4),
        ("kitten", "sitting", 1 - 3 / 6),
    ],
)
def test_accuracy(target, read, value):
    assert accuracy(target, read) == pytest.approx(value)
