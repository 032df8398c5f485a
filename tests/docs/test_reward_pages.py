"""The YAML on the pages about rewards is a reward."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from guardlit.rewards.base import Scorer

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in ("ocr", "unifiedreward")
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", (DOCS / f"{page}.md").read_text(), re.M | re.S))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_yaml_makes_a_reward(block: str):
    parser = ArgumentParser()
    parser.add_subclass_arguments(Scorer, "reward")
    reward = parser.instantiate(parser.parse_string(block)).reward
    assert isinstance(reward, Scorer)
    named = re.findall(r"^    (\w+):", block, re.M)
    assert len(named) >= 3


def test_no_page_is_without_one():
    assert len(BLOCKS) == 3
