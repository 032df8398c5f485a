"""Scorers are tested before anything is drawn, and closed whatever happens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from background import Background
from brightness import Brightness
from runs import config, guardlit
from torch import nan

from guardlit.errors import GuardlitError
from guardlit.rewards import DigitDiversity, DigitGold, DigitProbability, DigitRealism, JPEGCompressibility, Scorer
from guardlit.rewards.base import two_images
from guardlit.rounds.reward_runner import compare
from guardlit.training import validation
from guardlit.types import Prompt, RewardRequest, RewardResult

PROMPTS = [Prompt("nothing to count"), Prompt("a handwritten seven")]


class Answers(Brightness):
    """Gives two values, or raises."""

    def __init__(self, *values: float, distinguishes: bool = False, error: Exception | None = None) -> None:
        super().__init__()
        self.values, self.distinguishes, self.error = values, distinguishes, error

    def score(self, request: RewardRequest) -> RewardResult:
        if self.error is not None:
            raise self.error
        assert not torch.equal(*request.images)
        return RewardResult.from_values(torch.tensor(self.values))


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        (Answers(1.0, nan), "on 'nothing to count': answers: the score is no number"),
        (Answers(1.0, error=OSError("no such socket")), "answers: OSError: no such socket"),
        (Answers(0.5, 0.5, distinguishes=True), "two very different images both get 0.5; are these the right weights?"),
    ],
)
def test_a_scorer_that_does_not_score_is_found_out(scorer: Scorer, expected: str):
    with pytest.raises(GuardlitError) as caught:
        scorer.self_test(PROMPTS)
    assert str(caught.value).startswith("reward 'answers' fails its start-up test on ")
    assert expected in str(caught.value)


def test_two_zeros_are_fine_where_two_images_may_rightly_get_them():
    assert Answers(0.0, 0.0).self_test(PROMPTS).tolist() == [0, 0]


@pytest.mark.parametrize("cls", [DigitProbability, DigitGold, DigitRealism, DigitDiversity, JPEGCompressibility])
def test_the_scorers_pass_on_the_first_prompt_that_fits(cls: type[Scorer]):
    scorer = cls()
    scorer.setup(torch.device("cpu"))
    state = torch.get_rng_state()
    values = scorer.self_test(PROMPTS)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(values, scorer.self_test(PROMPTS))
    assert values.isfinite().all()
    assert (values[0] != values[1]) == (cls is not DigitDiversity)  # a distance from each to the other


def test_no_prompt_that_fits_is_a_mistake():
    with pytest.raises(GuardlitError, match="reward 'digitgold': none of the 1 prompts can be scored by it"):
        DigitGold().self_test(PROMPTS[:1])


def test_the_two_images_are_pictures():
    images = two_images()
    assert (images.shape, images.dtype) == ((2, 3, 256, 256), torch.uint8)
    assert images[1].unique().tolist() == [0, 255]
    assert images[0, :, 0, 255].tolist() == [255, 0, 0]


def test_processes_that_score_otherwise_are_named():
    compare("clip", [[21.0, 20.0], [21.0001, 20.0]])
    with pytest.raises(GuardlitError, match=r"process 1 scores the start-up images 21.3, 20, process 0 21, 20;"):
        compare("clip", [[21.0, 20.0], [21.3, 20.0]])


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
