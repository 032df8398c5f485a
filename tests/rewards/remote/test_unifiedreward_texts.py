"""How the answers of UnifiedReward are read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlit.rewards.remote.unifiedreward_texts import TEMPLATES

READ = TEMPLATES["7b-v1.5"].read


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("Final Score: 4", 4),
        ("cat (animal): 1\nred (color): 0\nFinal Score: 2.33\n", 2.33),
        ("**Final Score:** 4.5", 4.5),
        ("**Final Score**: 3", 3),
        ("Final Score: **4**", 4),
        ("**Final Score: 1.0**", 1),
        ("Final Score: 4/5.", 4),
        ("Final Score: 3.5 / 5.0", 3.5),
        ("final score:\n5", 5),
        ("Final Score: 4 out of 5", 4),
        ("(Final Score: 4)", 4),
        ("Final Score: 4<|im_end|>", 4),
        ("Final Score: 4 - well done, 2 cats", 4),
        ("Final Score: 2\nNo. Final Score: 3", 3),
        ("Final Score: 10\nFinal Score: 3", 3),
        ("Final Score: 3. I put it after 'Final Score:' as asked.", 3),
    ],
)
def test_answers_with_a_score(answer, score):
    assert READ(answer) == (score,)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "4",
        "Score: 4",
        "Final Score:",
        "Final Score 4",
        "Final Score: four",
        "Final Score: 0",
        "Final Score: 0.99",
        "Final Score: 5.01",
        "Final Score: 10",
        "Final Score: 45",
        "Final Score: -3",
        "Final Score: 4/10",
        "Final Score: 4 / 10",
        "Final Score: 4/50",
        "Final Score: 4 out of 10",
        "Final Score: 4,5",
        "Final Score: 4-5",
        "Final Score: 4 to 5",
        "Final Score: 3 or 4",
        "Final Score: 4 5",
        "Final Score: 4e3",
        "Final Score: 4%",
        "Final Score: 4.5.1",
        "Final Score: 4½",
        "Final Score: 1０",  # noqa: RUF001 - a zero of full width
        "Final Score: ４",  # noqa: RUF001
        "Final Score: NaN",
        "Final Score: inf",
        "Final Score: X",
        "Assign it after 'Final Score:' 4",
        "Final Score: 3\nFinal Score: 7",
        "Final Score: 3\nFinal Score: n/a",
    ],
)
def test_answers_without_a_score(answer):
    with pytest.raises(ValueError, match="Final Score:"):
        READ(answer)


WORDS = st.text(st.characters(exclude_characters=":："), max_size=40)  # noqa: RUF001 - no label can arise in it
STARS = st.sampled_from(["", "**", " ", "\t", "** ", "\n"])
ILLEGAL = st.one_of(
    st.floats(allow_nan=True).filter(lambda x: not 1 <= x <= 5).map(str),
    st.integers().filter(lambda x: not 1 <= x <= 5).map(str),
    st.floats(5.0001, 1e9).map(lambda x: f"{x:.4f}"),
    st.text("abcXYZ!?#-_/", max_size=8),
    st.builds("{}{}{}".format, st.integers(1, 5), st.sampled_from([*"/%,-^xe_", ".5."]), st.integers(6, 99)),
)


@settings(max_examples=500, deadline=None)
@given(WORDS, STARS, ILLEGAL, WORDS, st.sampled_from(["Final Score", "final score", "FINAL SCORE"]))
def test_no_answer_without_a_legal_score_is_a_number(before, stars, illegal, after, label):
    with pytest.raises(ValueError, match="Final Score:"):
        READ(f"{before}\n{label}:{stars}{illegal} {after if illegal else 'none'}")


@settings(max_examples=300, deadline=None)
@given(WORDS, STARS, st.floats(1, 5), st.sampled_from(["", ".", "**", "\n", "/5", "</s>"]))
def test_every_answer_with_a_legal_score_is_that_number(before, stars, score, end):
    text = f"{score:.3f}"
    assert READ(f"{before}\nFinal Score:{stars}{text}{end}") == (float(text),)
