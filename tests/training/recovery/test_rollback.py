"""A run that explodes goes back to its last good checkpoint, or stops with its name."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from exploding import Modes
from runs import config, differing, guardlit, newest

from guardlit.errors import GuardlitError
from guardlit.training.recovery.rollback import Rollback

EMA = {"class_path": "guardlit_callbacks.TrainableEMA"}
NO_GOLD = {"gold": None, "max_reward_drop": None}


def rollback(**settings: object) -> dict[str, object]:
    return {"class_path": "guardlit.training.recovery.rollback.Rollback", "init_args": settings}


def double(name: str, **settings: object) -> dict[str, object]:
    return {"class_path": f"exploding.{name}", "init_args": settings}


def gold(*values: float) -> dict[str, object]:
    """The callback with a scorer that says these things of the validations."""
    scripted = {"class_path": "exploding.Scripted", "init_args": {"values": list(values)}}
    return {"class_path": "guardlit_callbacks.GoldScore", "init_args": {"scorers": [scripted]}}


def good(folder: Path) -> list[int]:
    """Steps of the good checkpoints that are kept."""
    return sorted(int(p.stem.partition("_")[2]) for p in folder.rglob("good_*.ckpt"))


def learning_rate(checkpoint: Path) -> float:
    return torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"]


@pytest.fixture(scope="module")
def returned(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run of three rounds whose third is NaN unless the learning rate is below 3e-4; what it warned of."""
    folder = tmp_path_factory.mktemp("returned")
    callbacks = [EMA, rollback(**NO_GOLD), double("Poison", updates=[9], above_lr=3e-4)]
    path = config(folder, sd3_folder, data__val=None, trainer__callbacks=callbacks)
    with pytest.warns(UserWarning, match="; back to ") as warned:
        assert guardlit("fit", "--config", path) == 0
    return path, [str(w.message) for w in warned if "back to" in str(w.message)]


def test_it_says_where_it_goes_and_with_which_rates(returned):
    path, warned = returned
    checkpoints = path.parent / "runs/version_0/checkpoints"
    assert len(warned) == 2
    for k, (line, step, rate) in enumerate(zip(warned, (8, 4), (0.5, 0.25), strict=True), start=1):
        assert line.startswith("gradient norm is nan at update 10, round 3: the loss is nan at denoising step ")
        rest = f"back to {checkpoints / f'good_{step}.ckpt'}, learning rates x {rate} of the run's, rollback {k} of 2"
        assert line.endswith("; the weights were not touched; " + rest)
    assert learning_rate(newest(path.parent)) == pytest.approx(2.5e-4)
    assert good(path.parent) == [4, 8]  # the checkpoint at the end is not confirmed, but is there as the round's
    aside = sorted(p.name for p in checkpoints.glob("*.exploded*"))
    assert aside == ["good_8.ckpt.exploded", "round_00002.ckpt.exploded"]  # of the second rollback, to step 4
    assert not (checkpoints / "unconfirmed.ckpt").exists()
    saved = torch.load(newest(path.parent, "round_*.ckpt"), weights_only=True)
    assert (saved["global_step"], saved["callbacks"]["Rollback"]["rollbacks"]) == (12, 2)


def test_what_comes_after_is_the_run_from_that_checkpoint_with_lower_rates(returned, sd3_folder, tmp_path):
    """Weights, moments, averages, data: all of it is the checkpoint's."""
    path, _ = returned
    plain = config(tmp_path, sd3_folder, data__val=None, trainer__callbacks=[EMA, double("ScaleRates", factor=0.25)])
    checkpoint = path.parent / "runs/version_0/checkpoints/good_4.ckpt"
    assert guardlit("fit", "--config", plain, "--ckpt_path", checkpoint) == 0
    ends = [newest(folder, "round_00003*.ckpt") for folder in (path.parent, tmp_path)]
    assert differing(*ends, keys=("state_dict", "optimizer_states")) == []
    averages = [torch.load(p, weights_only=True)["callbacks"]["TrainableEMA"]["averages"] for p in ends]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[1])
    assert averages[1]


# each cause, and what is said of it -----------------------------------------------------------------------------------

EXPLOSIONS = {
    "gold": (
        {"trainer__check_val_every_n_epoch": 1, "trainer__callbacks": [gold(1.0, 1.2, 0.9)]},
        {},
        "gold/average fell from 1.2 to 0.9, by more than max_gold_drop=0.2 of it, at update 8",
        4,
    ),
    "reward": (
        {"model__reward": {"class_path": "exploding.Falling", "init_args": {"at": 5}}, "trainer__callbacks": []},
        {"gold": None},
        " in round 3, by more than max_reward_drop=3.0 standard deviations (",
        4,
    ),
    "gradient": (
        {"trainer__callbacks": [double("Spike", update=7), {"class_path": "guardlit_callbacks.GradientSpikes"}]},
        {**NO_GOLD, "max_spike": 50.0},
        " times its median, more than max_spike=50.0, at update 8",
        4,
    ),
    "rollout": (
        {"trainer__callbacks": [double("Break", round=1)]},
        NO_GOLD,
        "round 3, rank 0: the policy's velocity is NaN or infinite at denoising step 0",
        4,
    ),
}


@pytest.mark.parametrize("cause", EXPLOSIONS)
def test_a_run_that_stops_names_what_exploded_and_the_checkpoint(cause, sd3_folder, tmp_path, capsys, monkeypatch):
    changes, settings, what, step = EXPLOSIONS[cause]
    changes = dict(changes)
    if cause == "gradient":
        changes["trainer__callbacks"][1]["init_args"] = {"patience": 4, "window": 4}
    changes["trainer__callbacks"] = [*changes["trainer__callbacks"], rollback(action="stop", **settings)]
    if cause != "gold":
        changes["data__val"] = None
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **changes)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert what in said
    checkpoint = tmp_path / f"runs/version_0/checkpoints/good_{step}.ckpt"
    assert said.endswith(f"; resume with --ckpt_path {checkpoint} and a lower learning rate or a narrower clip range")
    assert good(tmp_path)[-1] == step
    assert torch.load(checkpoint, weights_only=True)["global_step"] == step


def test_gold_that_falls_once_costs_one_rollback(sd3_folder, tmp_path, capsys):
    """Validations: 0, round 0, round 1 (fallen); back to 4; round 1 again, round 2 (fallen); back to 8; round 2."""
    stop = {"class_path": "guardlit_callbacks.OverOptimizationStop", "init_args": {"action": "warn"}}
    callbacks = [EMA, rollback(), gold(1.0, 1.2, 0.5, 1.1, 0.9, 1.3), stop, double("Modes")]
    Modes.seen.clear()
    path = config(tmp_path, sd3_folder, trainer__check_val_every_n_epoch=1, trainer__callbacks=callbacks)
    with pytest.warns(UserWarning, match="; back to ") as warned:
        assert guardlit("fit", "--config", path) == 0
    back = [str(w.message) for w in warned if "back to" in str(w.message)]
    assert ["good_4.ckpt" in back[0], "good_8.ckpt" in back[1], len(back)] == [True, True, 2]
    assert "fell from 1.2 to 0.5, " in back[0]
    assert Modes.seen[0] == Modes.seen[1] == Modes.seen[2]  # though a validation never put them back
    assert True in Modes.seen[0]
    assert good(tmp_path) == [8, 12]
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        counts = [float(row["rollback/count"]) for row in csv.DictReader(file) if row["rollback/count"]]
    assert counts == [0, 0, 1, 2]
    last = newest(tmp_path, "good_12.ckpt")
    assert learning_rate(last) == pytest.approx(2.5e-4)
    kept = torch.load(last, weights_only=True)["callbacks"]["OverOptimizationStop"]["history"]
    assert [step for step, *_ in kept] == [0, 4, 8, 12]  # callbacks after it in the list have seen the validation


def test_a_run_that_explodes_again_and_again_stops(sd3_folder, tmp_path, capsys):
    callbacks = [rollback(**NO_GOLD, max_rollbacks=1), double("Poison", updates=[5])]
    path = config(tmp_path, sd3_folder, data__val=None, trainer__callbacks=callbacks)
    with pytest.warns(UserWarning, match="good_4.ckpt, learning rates x 0.5 of the run's, rollback 1 of 1"):
        assert guardlit("fit", "--config", path) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "gradient norm is nan at update 5" in said
    assert " after 1 rollbacks; resume with --ckpt_path " in said
    assert "good_0.ckpt" in said  # nothing good came of the other one


@pytest.mark.parametrize(
    ("settings", "changes", "line"),
    [
        ({}, {"data__val": None}, "Rollback: gold/average is to be watched, but data.val is null; or gold: null"),
        ({}, {}, "Rollback: 'gold/average' was not logged in validation; add guardlit_callbacks.GoldScore"),
        ({"max_spike": 5.0}, {}, "Rollback: max_spike=5.0 needs guardlit_callbacks.GradientSpikes"),
    ],
)
def test_what_cannot_be_watched_is_refused_at_the_start(sd3_folder, tmp_path, capsys, settings, changes, line):
    changes = {**changes, "trainer__callbacks": [rollback(**settings)]}
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **changes)) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"lr_factor": 1.0}, "lr_factor=1.0 must lie between 0 and 1"),
        ({"max_rollbacks": 0}, "max_rollbacks=0 must be at least 1"),
        ({"keep": 1}, "keep=1 at least 2"),
        ({"max_gold_drop": -1.0}, "max_gold_drop=-1.0 must be positive"),
        ({"max_reward_drop": 0.0}, "max_reward_drop=0.0 must be positive"),
        ({"max_spike": 1.0}, "max_spike=1.0 must exceed 1 median"),
    ],
)
def test_arguments_out_of_range_are_refused(settings, line):
    with pytest.raises(GuardlitError, match=line):
        Rollback(**settings)
