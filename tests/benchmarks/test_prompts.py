"""benchmarks/prompts.py: its file holds what it says, and growth, a late start and other weights are found."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.prompts import faults, make_prompts, table
from guardlit.data.prompts import load_prompts
from guardlit.rewards.digits.scorers import DigitProbability

MARK = {"rss_mb": 900.0, "peak_mb": 950.0}
FEW = {
    name: {"seconds": seconds, **MARK}
    for name, seconds in {
        "prompts read": 1.0,
        "model loaded": 2.0,
        "round started": 2.5,
        "first step": 3.0,
        "end": 9.0,
    }.items()
}


def test_the_prompts_are_distinct_and_can_be_scored(tmp_path: Path):
    make_prompts(tmp_path / "p.parquet", 250)
    scorer = DigitProbability()
    prompts = load_prompts(str(tmp_path / "p.parquet"), check=lambda p: scorer.check_prompt(p.text, p.metadata))
    assert len({p.text for p in prompts}) == 250
    assert pq.ParquetFile(tmp_path / "p.parquet").num_row_groups == 1


@pytest.mark.parametrize(
    ("mark", "key", "more", "said"),
    [
        ("prompts read", "peak_mb", 100.0, "memory grew by 100 MB"),
        ("end", "rss_mb", 250.0, "memory grew by 250 MB"),
        ("round started", "seconds", 4.5, "the first round started 5.0 s after the model was loaded"),
    ],
)
def test_what_must_not_grow_is_found(mark: str, key: str, more: float, said: str):
    many = deepcopy(FEW)
    assert faults(FEW, many, []) == []
    many[mark][key] += more
    assert faults(FEW, many, []) == [said]


def test_other_weights_are_found():
    assert faults(FEW, FEW, ["/state_dict/a"]) == ["weights differ after a resume: /state_dict/a"]


def test_a_row_a_run():
    assert table({"10": FEW}).splitlines()[-1] == "| 10 | 900 | 950 | 900 | 900 | 900 | 0.50 | 1.00 |"
