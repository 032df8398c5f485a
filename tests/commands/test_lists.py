"""Options that take several words."""

from __future__ import annotations

import json

import pytest

from guardlit.commands.lists import as_options, split_lists
from guardlit.errors import GuardlitError


@pytest.mark.parametrize(
    ("words", "prompts"),
    [
        (["--prompts", "a red cup"], ["a red cup"]),
        (["--prompts", "a cup", "a cat"], ["a cup", "a cat"]),
        (["--prompts", "a cup", "--prompts", "a cat"], ["a cup", "a cat"]),
        (["--prompts=a cup"], ["a cup"]),
        (["--prompts", '["a cup", "a cat"]'], ["a cup", "a cat"]),
        (["--prompts", "seven: a digit, [3]"], ["seven: a digit, [3]"]),
        (["--prompts", "3"], ["3"]),
        (["--prompts", ""], [""]),
    ],
)
def test_words_of_an_option_become_a_list(words, prompts):
    found, rest = split_lists("guardlit sample", ["--n", "1", *words, "--out", "x"], ["prompts"])
    assert found == {"prompts": prompts}
    assert rest == ["--n", "1", "--out", "x"]
    assert as_options(found) == ["--prompts", json.dumps(prompts)]


def test_what_is_not_given_or_null_stays_so():
    assert as_options(split_lists("guardlit sample", ["--n", "1"], ["prompts"])[0]) == []
    assert as_options(split_lists("guardlit sample", ["--prompts", "null"], ["prompts"])[0]) == ["--prompts", "null"]


@pytest.mark.parametrize(("words", "found"), [("[3]", "found 3, expected text"), ("[a", "a list that is no JSON")])
def test_a_list_of_something_else_is_refused(words, found):
    with pytest.raises(GuardlitError, match=f"^--prompts: {found}"):
        split_lists("guardlit sample", ["--prompts", words], ["prompts"])
