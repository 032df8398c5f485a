"""The time left that a run shows, against a clock that the test winds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from runs import config, guardlit

from guardlit.time_left import TimeLeft

ROUNDS, EVERY = 12, 3
VALIDATION = 25.0


class Run:
    """Twelve rounds of about ten seconds, with all that is not a usual round."""

    def __init__(self) -> None:
        self.now = 100.0
        self.left = TimeLeft(lambda: self.now)
        self.told: list[tuple[float, float | None]] = []  # when, and the seconds left that were said

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def say(self, finished: int, rounds: int) -> None:
        to_come = rounds // EVERY - finished // EVERY
        self.told.append((self.now, self.left.seconds(rounds - finished, to_come)))

    def validate(self, seconds: float) -> None:
        self.left.validation(begins=True)
        self.spend(seconds)
        self.left.validation(begins=False)

    def round(self, index: int) -> None:
        self.spend(7 + index % 3)  # the rollout
        self.say(index, ROUNDS)
        self.spend(2)
        if (index + 1) % EVERY == 0:
            self.validate(VALIDATION)
        self.left.round()
        self.say(index + 1, ROUNDS)
        self.spend(1)  # the checkpoint


@pytest.fixture
def run() -> Run:
    run = Run()
    run.left.begin(half=False)
    run.validate(VALIDATION + 10)  # step 0, and the evaluation's own start-up
    run.spend(60)  # text encoders, scorers, the embeddings of all prompts
    run.left.rollout()
    for index in range(ROUNDS):
        run.round(index)
    return run


def test_it_is_within_30_percent_from_the_second_round_on(run: Run):
    end = run.now - 1
    for at, left in run.told[1:]:
        assert left is not None
        assert left == pytest.approx(end - at, rel=0.3, abs=3)


def test_before_the_first_round_is_over_it_says_nothing(run: Run):
    assert run.told[0][1] is None


def test_a_round_that_was_taken_up_half_done_does_not_count():
    run = Run()
    run.left.begin(half=True)
    run.spend(2)
    run.left.round()
    assert run.left.seconds(5, 0) is None
    run.spend(10)
    run.left.round()
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
    assert guardlit("fit", "--config", path, "--trainer.max_epochs", 4) == 0
    assert asked == [(3, 2), (2, 1), (1, 1), (0, 0)]
    assert len(re.findall(r"^round \d/4 .* 1:01 left$", capsys.readouterr().err, re.MULTILINE)) == 4
