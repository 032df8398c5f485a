"""The time left: rounds and validations are timed apart, and a warm-up is not taken for a round."""

from __future__ import annotations

import csv
import re
import time
from pathlib import Path

import pytest
from forked import forked
from runs import config, guardlit
from screen import Terminal

from guardlit.training.console.time_left import RECENT, TimeLeft


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
    """Without a terminal: plain lines, one a round, and the closing block."""
    asked: list[tuple[int, int]] = []

    def seconds(self: TimeLeft, rounds: int, validations: int) -> float:
        asked.append((rounds, validations))
        return 3661.0

    monkeypatch.setattr(TimeLeft, "seconds", seconds)
    monkeypatch.setenv("FORCE_COLOR", "1")
    path = config(tmp_path, sd3_folder, trainer__check_val_every_n_epoch=2, trainer__callbacks=EXPORT)
    assert guardlit("fit", "--config", path, "--trainer.max_epochs", 4) == 0
    assert asked == [(3, 2), (2, 1), (1, 1), (0, 0)]
    written = capsys.readouterr().err
    assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f]*", written)  # no control characters but line feeds
    first, *lines = [line for line in written.splitlines() if line.startswith("round ")]
    assert re.fullmatch(rf"round 0/4  validation {VALUE}", first)
    for number, line in enumerate(lines, 1):
        validation = rf"  validation {VALUE}" if number % 2 == 0 else ""
        numbers = rf"reward/jpeg_compressibility {VALUE}  clipped \d\.\d\d{validation}"
        assert re.fullmatch(rf"round {number}/4  {numbers}  time (\d+ min )?\d+ s  1 h 01 min left", line), line
    assert len(lines) == 4
    assert_closes(written.splitlines()[-5:], tmp_path / "runs/version_0")


VALUE = r"-?\d+\.\d+"
EXPORT = [{"class_path": "guardlit_callbacks.TrainableEMA"}, {"class_path": "guardlit.training.export.ExportAtEnd"}]


def assert_closes(lines: list[str], run: Path) -> None:
    """The closing block names the run, what it holds, and the commands that look at it."""
    (newest,) = sorted((run / "checkpoints").glob("round_*.ckpt"))[-1:]
    assert (
        lines
        == [
            f"run         {run}",
            f"weights     {run}/export/ema  (averaged: use these)",
            f"            {run}/export/raw  (of the last update, not averaged)",
            f"checkpoint  {newest}  (last)",
            f"report      guardlit report {run} --out {run}/report",
            f"curves      tensorboard --logdir {run.parent}",
        ][-len(lines) :]
    )


def test_two_ranks_on_one_terminal(sd3_folder: Path, tmp_path: Path):
    """Every line of the scrollback is complete, and rank 0 alone prints."""
    path = config(tmp_path, sd3_folder, trainer__callbacks=EXPORT, trainer__check_val_every_n_epoch=2)
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.micro_batch", 3)
    with Terminal(400) as screen:
        run = forked(
            tmp_path, "fit", "--config", path, *two, device=screen.name, TERM="xterm", COLUMNS=""
        )  # readline sets it
        codes = run.wait()
    assert codes == [0, 0], screen.text[-3000:]
    row = rf" +[123]/3 +{VALUE}      \d\.\d\d(  +{VALUE})?  +\d+ s"
    table = [line for line in screen.lines if re.match(r" +(\d/3|round) ", line)]
    assert re.fullmatch(r"   round  validation", table[0])
    assert re.fullmatch(rf"     0/3 +{VALUE}", table[1])
    assert re.fullmatch(r"   round  jpeg_compressibility   clipped  validation      time", table[2])
    assert all(re.fullmatch(row, line) for line in table[3:]), table
    assert len(table) == 6
    with open(tmp_path / "runs/version_0/metrics.csv", newline="") as file:
        logged = [text for row in csv.DictReader(file) if (text := row["train/clip_off_policy"])]
    assert [line.split()[2] for line in table[3:]] == [f"{float(text):.2f}" for text in logged]  # of all ranks
    assert not [line for line in screen.lines if "\u2501" in line]  # the live line is gone
    assert re.search("round 1/3  start +\u2501+  0/1", screen.text)
    assert screen.lines.count("images per round    2 prompts x 4 = 8, 4 on each of 2 ranks") == 1
    *before, last = [line for line in screen.lines[:-6] if line not in table]
    assert last == "`Trainer.fit` stopped: `max_epochs=3` reached."
    assert [line for line in before if not line.startswith(STARTS)] == []
    assert_closes(screen.lines[-6:], tmp_path / "runs/version_0")


STARTS = ("Seed set to 42", "images per round ", "transitions ", "updates per round ", "off-policy ", "noise floor of ")
"""How the other lines of a quiet run begin."""
