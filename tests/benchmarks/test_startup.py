"""benchmarks/startup.py: stages come in order, and the shown time left is compared with the actual one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.startup import LEFT, STAGES, measure, show_left  # noqa: E402

SMALL = ("--data.images_per_prompt", "4", "--data.micro_batch", "10")


def test_help_is_timed_in_a_separate_process():
    times = measure(["--help"])
    assert list(times) == ["end"]
    assert 0 < times["end"][1] < times["end"][0]


@pytest.mark.slow
def test_the_run_stops_after_its_first_update():
    times = measure(["fit", "--config", "configs/tiny_digits.yaml", *SMALL])
    assert list(times) == [*STAGES[:-1], "stopped"]
    seconds = [both[0] for both in times.values()]
    assert seconds == sorted(seconds)


def test_the_first_round_and_the_end_do_not_count(capsys: pytest.CaptureFixture[str]):
    shown = {1: (10.0, 500.0), 2: (20.0, 96.0), 3: (60.0, 45.0)}
    show_left({"end": (100.0, 90.0), **{f"{LEFT}{k}": both for k, both in shown.items()}})
    assert capsys.readouterr().out == "time left: +20% after round 2, at worst +20% after round 2\n"


def test_a_stopped_run_prints_no_time_left(capsys: pytest.CaptureFixture[str]):
    show_left({"first update": (10.0, 9.0)})
    assert capsys.readouterr().out == ""
