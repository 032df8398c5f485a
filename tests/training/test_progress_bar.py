"""The time left: rounds and validations are timed apart, and a warm-up is not taken for a round."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from runs import config, guardlit

from guardlit.training.time_left import RECENT, TimeLeft


class Now:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Now:
    clock = Now()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def a_round(left: TimeLeft, now: Now, seconds: float, validation: float = 0.0) -> None:
    now.seconds += seconds / 2
    if validation:
        left.begin_validation()
        now.seconds += validation
        left.end_validation()
    now.seconds += seconds / 2
    left.end_round()


def test_before_the_first_round_ends_nothing_is_known(now: Now):
    left = TimeLeft()
    now.seconds += 5
    assert left.seconds(3, 1) is None


def test_the_first_round_counts_until_there_is_a_second(now: Now):
    left = TimeLeft()
    a_round(left, now, 30)
    assert left.seconds(4, 0) == 4 * 30
    a_round(left, now, 10)
    assert left.seconds(3, 0) == 3 * 10
    a_round(left, now, 12)
    assert left.seconds(2, 0) == 2 * 11


def test_a_validation_is_no_part_of_its_round(now: Now):
    left = TimeLeft()
    a_round(left, now, 10, validation=100)
    a_round(left, now, 10)
    assert left.seconds(5, 0) == 50
    assert left.seconds(5, 2) == 250


def test_the_round_in_progress_is_taken_off(now: Now):
    left = TimeLeft()
    a_round(left, now, 10)
    now.seconds += 4
    assert left.seconds(2, 0) == 16
    now.seconds += 40  # longer than a round: how much of it is left is unknown
    assert left.seconds(2, 0) == 10


def test_old_rounds_are_forgotten(now: Now):
    left = TimeLeft()
    for _ in range(5):
        a_round(left, now, 100)
    for _ in range(RECENT):
        a_round(left, now, 1)
    assert left.seconds(1, 0) == 1


ROUNDS, EVERY = 12, 3
VALIDATION = 25.0


class Run:
    """Twelve rounds of about ten seconds, with all that is not a usual round."""

    def __init__(self, now: Now) -> None:
        self._now, self.left = now, TimeLeft()
        self.said: list[tuple[float, float | None]] = []  # when, and the seconds left that were said

    def spend(self, seconds: float) -> None:
        self._now.seconds += seconds

    def say(self, finished: int, rounds: int) -> None:
        to_come = rounds // EVERY - finished // EVERY
        self.said.append((self._now.seconds, self.left.seconds(rounds - finished, to_come)))

    def validate(self, seconds: float) -> None:
        self.left.begin_validation()
        self.spend(seconds)
        self.left.end_validation()

    def round(self, index: int) -> None:
        self.spend(7 + index % 3)  # the rollout
        self.say(index, ROUNDS)
        self.spend(2)
        if (index + 1) % EVERY == 0:
            self.validate(VALIDATION)
        self.left.end_round()
        self.say(index + 1, ROUNDS)
        self.spend(1)  # the checkpoint


@pytest.fixture
def run(now: Now) -> Run:
    run = Run(now)
    run.left.begin(half=False)
    run.validate(VALIDATION + 10)  # step 0, and the evaluation's own start-up
    run.spend(60)  # text encoders, scorers, the embeddings of all prompts
    run.left.begin_rollout()
    for index in range(ROUNDS):
        run.round(index)
    return run


def test_it_is_within_30_percent_from_the_second_round_on(run: Run, now: Now):
    end = now.seconds - 1
    for at, left in run.said[1:]:
        assert left is not None
        assert left == pytest.approx(end - at, rel=0.3, abs=3)


def test_a_round_that_was_taken_up_half_done_does_not_count(now: Now):
    run = Run(now)
    run.left.begin(half=True)
    run.spend(2)
    run.left.end_round()
    assert run.left.seconds(5, 0) is None
    run.spend(10)
    run.left.end_round()
    run.spend(4)
    assert run.left.seconds(5, 0) == pytest.approx(46)
    run.spend(50)  # one that takes longer does not make the rest shorter
    assert run.left.seconds(5, 0) == pytest.approx(40)


def test_a_run_counts_the_rounds_and_validations_to_come(
    sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[tuple[int, int]] = []

    def seconds(self: TimeLeft, rounds: int, validations: int) -> float:
        asked.append((rounds, validations))
        return 61.0

    monkeypatch.setattr(TimeLeft, "seconds", seconds)
    path = config(tmp_path, sd3_folder, trainer__check_val_every_n_epoch=2)
    assert guardlit("fit", "--config", path, "--trainer.max_epochs", 5) == 0
    assert asked == [(4, 3), (3, 2), (2, 2), (1, 1), (0, 0)]  # after rounds 2, 4 and 5
    assert len(re.findall(r"^round \d/5 .* 1:01 left$", capsys.readouterr().err, re.MULTILINE)) == 5
