"""Scorers are tested before anything is drawn, and closed whatever happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from background import Background
from brightness import Brightness
from runs import config, guardlit

from guardlit.errors import GuardlitError
from guardlit.processes.world import World
from guardlit.rewards import (
    Composite,
    DigitGold,
    JPEGCompressibility,
    Reward,
    Scorer,
    Term,
)
from guardlit.rounds.reward_runner import RewardRunner, compare, gold_scorers
from guardlit.training import validation
from guardlit.types import Prompt


def test_ranks_with_different_scores_are_named():
    compare("clip", [[21.0, 20.0], [21.0001, 20.0]])
    with pytest.raises(GuardlitError, match=r"rank 1 scores the start-up images 21.3, 20, rank 0 21, 20;"):
        compare("clip", [[21.0, 20.0], [21.3, 20.0]])


# the runner, without a Trainer ---------------------------------------------------------------------------------------

CPU = torch.device("cpu")
IMAGES = torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
TWO = [Prompt("a"), Prompt("b")]


class Logged(Brightness):
    """Notes when it is set up and closed."""

    def __init__(self, fail: str = "") -> None:
        super().__init__(fail)
        self.calls: list[str] = []

    def setup(self, device: torch.device) -> None:
        self.calls.append(f"setup {device}")

    def close(self) -> None:
        self.calls.append("close")


@dataclass(frozen=True)
class Second(World):
    """Rank 1 of two, where rank 0 gives `first` to each `gather_objects` in turn and has no error."""

    first: list[Any] = field(default_factory=list)
    raised: list[GuardlitError | None] = field(default_factory=list)

    def gather_objects(self, value: Any) -> list[Any]:
        return [self.first.pop(0), value]

    def raise_on_all(self, error: GuardlitError | None) -> None:
        self.raised.append(error)
        if error is not None:
            raise error


def second(*first: object) -> Second:
    return Second(1, 2, CPU, first=list(first))


def test_the_reward_is_set_up_once_and_closed_once():
    scorer = Logged()
    runner = RewardRunner(Reward.of(scorer), World.single())
    runner.close()
    assert runner.ready() is runner.ready()
    runner.close(), runner.close()
    runner.ready()
    assert scorer.calls == ["setup cpu", "close", "setup cpu"]


def test_a_setup_that_fails_halfway_is_closed():
    class Broken(Brightness):
        def setup(self, device: torch.device) -> None:
            raise GuardlitError("no such file")

    scorer = Logged()
    runner = RewardRunner(Composite([Term(scorer), Term(Broken())]), World.single())
    for _ in range(2):
        with pytest.raises(GuardlitError, match="no such file"):
            runner.ready()
    assert scorer.calls == ["setup cpu", "close"] * 2


def test_each_scorer_is_tested_once():
    runner = RewardRunner(Reward.of(Brightness()), World.single())
    runner.test(TWO)
    assert runner.tested.keys() == {"brightness"}
    before = dict(runner.tested)
    runner.test(TWO, {"jpeg": JPEGCompressibility()})
    assert runner.tested.keys() == {"brightness", "gold/jpeg"}
    assert runner.tested["brightness"] is before["brightness"]


def test_a_reward_that_fails_its_test_is_closed():
    scorer = Logged(fail="a")
    runner = RewardRunner(Reward.of(scorer), World.single())
    with pytest.raises(GuardlitError, match="reward 'logged' fails its start-up test on 'a'"):
        runner.test(TWO)
    assert scorer.calls == ["setup cpu", "close"]


def test_every_rank_tests_with_the_prompts_of_rank_0():
    world = second(Prompt("theirs"), [0.5, 0.5])
    runner = RewardRunner(Reward.of(Brightness(fail="theirs")), world)
    with pytest.raises(GuardlitError, match="fails its start-up test on 'theirs'"):
        runner.test(TWO)
    assert [error is None for error in world.raised] == [True, False]  # of the setup, of the test


def test_a_scorer_is_tested_with_a_prompt_that_it_accepts_and_reads_no_further():
    def prompts() -> Iterator[Prompt]:
        yield Prompt("nothing to count")
        yield Prompt("a handwritten seven")
        pytest.fail("a prompt too many was read")

    class Lazy(list[Prompt]):
        def __iter__(self) -> Iterator[Prompt]:
            return prompts()

    runner = RewardRunner(Composite([Term(Brightness()), Term(DigitGold(), weight=0)]), World.single())
    runner.test(Lazy())
    assert runner.tested.keys() == {"brightness", "digitgold"}


def test_a_rank_with_other_weights_is_found():
    scores = [0.1, 0.2]
    runner = RewardRunner(Reward.of(Brightness()), second(TWO[0], scores))
    with pytest.raises(GuardlitError, match="reward 'brightness' is not the same on all ranks: rank 1 scores"):
        runner.test(TWO)


def test_validation_scores_images_and_names_the_prompt_of_a_failure():
    runner = RewardRunner(Reward.of(Brightness(fail="b")), World.single())
    assert runner.validate(IMAGES[:1], TWO[:1]).values.tolist() == pytest.approx([0.2])
    with pytest.raises(
        GuardlitError, match="reward 'brightness' failed in validation, first on prompt 'b'; brightness: the score is"
    ):
        runner.validate(IMAGES, TWO)
    runner.end_validation()  # nothing is left of it


def test_with_several_ranks_a_failed_validation_is_raised_at_its_end():
    world = second()
    runner = RewardRunner(Reward.of(Brightness(fail="b")), world)
    assert runner.validate(IMAGES, TWO).valid.tolist() == [True, False]
    assert runner.validate(IMAGES[:1], TWO[:1]).values.isnan().all()  # nothing more is scored
    assert world.raised == []
    with pytest.raises(GuardlitError, match="first on prompt 'b'"):
        runner.end_validation()
    runner.end_validation()
    assert world.raised[-1] is None


def test_an_image_that_cannot_be_drawn_fails_a_validation_at_its_end():
    broken = GuardlitError("step 3 is not finite")
    runner = RewardRunner(Reward.of(Brightness()), second())
    with pytest.raises(GuardlitError, match="step 3"):
        runner.fail(broken, deferred=False)
    runner.end_validation()
    runner.fail(broken, deferred=True)
    runner.fail(GuardlitError("a later one"), deferred=True)
    assert runner.validate(IMAGES, TWO).values.isnan().all()
    with pytest.raises(GuardlitError, match="step 3"):
        runner.end_validation()


def test_gold_scorers_are_those_that_callbacks_hold():
    class Holder:
        def __init__(self, **scorers: object) -> None:
            self.scorers = scorers

    gold = Brightness()
    assert gold_scorers([object(), Holder(gold=gold, fid=torch.nn.Identity())]) == {"gold": gold}


# whole runs ----------------------------------------------------------------------------------------------------------


def test_nothing_is_drawn_with_a_bad_scorer_and_it_is_closed(sd3_folder, tmp_path, monkeypatch, capsys):
    closed: list[str] = []
    monkeypatch.setattr(Brightness, "close", lambda self: closed.append(self.name))
    monkeypatch.setattr(validation, "draw_fixed", lambda *_: pytest.fail("an image was drawn"))
    reward = {"class_path": "brightness.Brightness", "init_args": {"fail": "cat"}}
    path = config(tmp_path, sd3_folder, model__reward=reward)
    for command in ("fit", "validate"):
        assert guardlit(command, "--config", path) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert "reward 'brightness' fails its start-up test on 'a cat on a table': brightness: the score is no" in said
    assert closed == ["brightness"] * 2


def test_a_gold_scorer_is_tested_once_it_is_loaded(sd3_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(validation, "draw_fixed", lambda *_: pytest.fail("an image was drawn"))
    gold = {"class_path": "brightness.Brightness", "init_args": {"fail": "cat"}}
    callback = {"class_path": "guardlit_callbacks.GoldScore", "init_args": {"scorers": [gold]}}
    path = config(tmp_path, sd3_folder, trainer__callbacks=[callback])
    assert guardlit("fit", "--config", path) == 2
    assert "reward 'brightness' fails its start-up test on 'a cat" in capsys.readouterr().err.splitlines()[-1]


def test_the_run_folder_says_who_scores(sd3_folder, tmp_path, monkeypatch):
    closed: list[str] = []
    monkeypatch.setattr(Background, "close", lambda self: closed.append(self.name))
    terms = [
        {"scorer": "JPEGCompressibility", "divide": 2.0},
        {"scorer": "background.Background", "weight": 0, "name": "watched"},
    ]
    callback = {"class_path": "guardlit_callbacks.GoldScore", "init_args": {"scorers": ["background.Contrast"]}}
    reward = {"class_path": "Composite", "init_args": {"terms": terms}}
    path = config(tmp_path, sd3_folder, model__reward=reward, trainer__callbacks=[callback], trainer__max_epochs=1)
    assert guardlit("fit", "--config", path) == 0
    facts = json.loads(Path(tmp_path / "runs/version_0/run.json").read_text())
    assert facts["reward"] == {"name": "composite", "weights": {"jpeg_compressibility": 1.0, "watched": 0}}
    assert facts["scorers"]["jpeg_compressibility"] == {"scorer": "jpeg_compressibility", "quality": "95"}
    assert facts["scorers"].keys() == facts["start_up_scores"].keys()
    assert facts["scorers"].keys() == {"jpeg_compressibility", "watched", "gold/contrast"}
    assert facts["start_up_scores"]["gold/contrast"][1] == pytest.approx(0.5, rel=1e-4)  # of a chessboard
    assert closed == ["background"]


def test_a_scorer_that_cannot_be_closed_hides_nothing(sd3_folder, tmp_path, monkeypatch, capsys):
    def close(self: Scorer) -> None:
        raise OSError("already gone")

    monkeypatch.setattr(Background, "close", close)
    reward = {"class_path": "background.Background", "init_args": {"how": "hopeless"}}
    path = config(tmp_path, sd3_folder, model__reward=reward, data__val=None)
    with pytest.warns(UserWarning, match="reward 'background' could not be closed: already gone"):
        assert guardlit("fit", "--config", path) == 2
    assert "the wires are cut" in capsys.readouterr().err.splitlines()[-1]
