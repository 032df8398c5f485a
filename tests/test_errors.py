"""Hints at similar names."""

from __future__ import annotations

import pytest

from guardlit.errors import did_you_mean, similar


@pytest.mark.parametrize(
    ("word", "hint"),
    [("fti", "did you mean fit?"), ("FIT", "did you mean fit?"), ("schedul", "did you mean schedule?"), ("xyz", "")],
)
def test_the_most_similar_word_is_named(word: str, hint: str):
    assert did_you_mean(word, ["fit", "validate", "schedule"]) == hint


def test_all_known_words_are_listed_where_none_is_similar():
    assert did_you_mean("xyz", {"fit": 1, "plan": 2}, "commands are") == "commands are fit, plan"


def test_several_similar_words_stand_in_order():
    assert similar("flash_atn", ["native", "flash_attn_2", "Flash_Attn"], n=2) == ["Flash_Attn", "flash_attn_2"]
    assert did_you_mean("flash_atn", ["flash_attn_2", "Flash_Attn"], n=2) == "did you mean Flash_Attn or flash_attn_2?"
