"""Code and documentation use the field's words; `codespell` holds spelling and single words, this file phrases."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THIS = Path(__file__).relative_to(ROOT)
SUFFIXES = {".ipynb", ".md", ".py", ".toml", ".yaml", ".yml"}
FOLDERS = ("guardlit", "callbacks", "tests", "benchmarks", "configs", "docs", "notebooks", ".github")
PHRASES = {
    r"(?:go|goes|going|went|gone) on(?! (?:top|the))": "resume, continue",
    r"of (?:its|their) own": "its own, private, separate",
    r"hang(?:s|ing)? on": "depends on",
    r"put by": "saved, set aside",
    r"(?:is|are|was|be) no good": "unusable, corrupt",
    r"some \w+ or other": "any",
    r"give[sn]? back": "release, return",
    r"(?:is|are|was|were|be|been|being) told": "receives, is given, is notified",
    r"whole checkpoints?": "intact checkpoint",
}
ALLOWED: dict[str, set[str]] = {}  # a file's path: phrases that are right there


def files() -> list[Path]:
    """Texts of the repository: those at its root, and all in the folders of code and documentation."""
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    texts = [path for path in [*ROOT.glob("*"), *inside] if path.suffix in SUFFIXES and path.is_file()]
    return sorted(path for path in texts if path.relative_to(ROOT) != THIS)


def phrases(text: str) -> list[tuple[int, str, str]]:
    """Line, phrase and better words of each banned phrase, also where a line break or a comment's `#` divides it."""
    found = []
    for pattern, better in PHRASES.items():
        gap = pattern.replace(" ", r'(?:[\s#"\\]|\\n)+')
        for match in re.finditer(rf"(?<![\w-])(?:{gap})(?![\w-])", text, re.IGNORECASE):
            found.append((text.count("\n", 0, match.start()) + 1, re.sub(r"[\s#]+", " ", match[0]), better))
    return sorted(found)


def test_phrases_are_the_fields():
    found = []
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        for line, phrase, better in phrases(path.read_text(encoding="utf-8")):
            if phrase.lower() not in ALLOWED.get(name, set()):
                found.append(f"{name}:{line}: {phrase!r}; better: {better}")
    assert not found, "\n".join(found)


def test_what_is_allowed_is_there():
    for name, allowed in ALLOWED.items():
        there = {phrase.lower() for _, phrase, _ in phrases((ROOT / name).read_text(encoding="utf-8"))}
        assert allowed <= there, name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it goes on from there", [1]),
        ("a run that\n    # goes\n    # on", [2]),
        ("has a file of its own; hangs on it", [1, 1]),
        ("a cargo on deck", []),
        ("Go\non", [1]),
    ],
)
def test_a_phrase_is_found_across_lines(text: str, expected: list[int]):
    assert [line for line, _, _ in phrases(text)] == expected
