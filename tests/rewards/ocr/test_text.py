"""The text that a prompt quotes, and its distance from the text that was read."""

# ruff: noqa: RUF001 - it is about characters that look alike

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guardlit.data.prompts import load_prompts
from guardlit.rewards import OCR
from guardlit.rewards.ocr.text import accuracy, legible, quoted_texts, squeezed
from guardlit.types import Prompt

PUBLISHED = Path(__file__).parents[4] / "shared" / "prompts" / "ocr_test.txt"


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "Open"', ["Open"]),
        ("a sign “Open”, lit", ["Open"]),
        ('"A" over “B c” over "d"', ["A", "B c", "d"]),
        ("""the dog's "Don't" sign""", ["Don't"]),
        ("a “Don’t” sign", ["Don’t"]),
        ('"""', None),
        ('a 12" vinyl "Hits"', None),
        ("a sign 'Open'", None),
        ("a sign ‘Open’", None),
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
    why = OCR().refusal(Prompt(prompt))
    assert why.startswith(f"reward 'ocr' cannot score the prompt {prompt!r}: ")
    assert len(why.splitlines()) == 1


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
    ("text", "compared"),
    [
        ("IT’S ‘OK’", "it's'ok'"),
        ("5′10″", "5'10\""),
        ("Wait…", "wait..."),
        ("a‐b‑c–d—e−f", "a-b-c-d-e-f"),
        ("10 °C 10 º 10℃ 10˚", "10°c10°10°c10°"),
        ("Cafe\u0301 CAFÉ", "cafécafé"),
        ("oﬃce ﬁne ＯＫ Ⅳ №", "officefineokivno"),
        ("½ m² H₂O 1⁄2", "1/2m2h2o1/2"),
        ("Straße STRASSE", "strassestrasse"),
        ("Æther Œuvre", "aetheroeuvre"),
        ("İstanbul KIZ kız", "istanbulkizkiz"),
        ("ΑΘΗΝΑ", "aθhna"),  # as it is read: the recognizer takes these capitals for Latin ones
        ("A • B · C", "a·b·c"),
        ("\ufeffW\u200bi\u00adFi\u2060", "wifi"),
        ("I ♥\ufe0f NY ★ 🎉", "iny"),
        ("© 2024 5 °", "©20245°"),
        ("東京タワー ｶﾞ", "東京タワーガ"),
        ("100 % & A/B #1 @x", "100%&a/b#1@x"),
    ],
)
def test_what_looks_the_same_is_compared_as_the_same(text, compared):
    assert squeezed(text) == compared
    assert squeezed(compared) == compared


KNOWN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789é東京!-'")


@pytest.mark.parametrize(
    ("text", "target"),
    [("¡Hola!", "hola!"), ("„Tag", "tag"), ("CAFE\u0301", "café"), ("東京", "東京"), ("x\u0302", "x"), ("★ A", "a")],
)
def test_marks_that_the_recognizer_does_not_know_do_not_count(text, target):
    assert legible(text, KNOWN) == target


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Москва", "cannot read м о с к в а in"),
        ("OPEN שלום", "cannot read ש ל ו ם in"),
        ("٣", "cannot read ٣ in"),
        ("АБВГДЕЖЗИКЛ", "cannot read а б в г д е ж з и к ... in"),
        ("★", 'cannot read any of "★"'),
        ("¿", 'cannot read any of "¿"'),
    ],
)
def test_letters_that_the_recognizer_does_not_know_are_refused(text, found):
    with pytest.raises(ValueError, match=re.escape(f"the recognizer {found}")):
        legible(text, KNOWN)


@pytest.mark.parametrize(
    ("target", "read", "value"),
    [
        ("IT’S OK", "IT'S OK", 1),
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
