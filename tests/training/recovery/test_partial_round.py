"""A fit that ends within a round by anything but a signal resumes as the undisturbed one, bit for bit."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import forked
from runs import config, differing, guardlit, newest

EMA = {"class_path": "guardlit_callbacks.TrainableEMA"}
LOGGED = ("val/reward", "average_reward/jpeg_compressibility", "train/loss", "train/grad_norm")
"""Some of the columns of `metrics.csv`, by update and by round."""


def stop(place: str, at: int, **more: Any) -> list[dict[str, Any]]:
    """Callbacks that stop the run there."""
    return [EMA, {"class_path": "troubles.Stop", "init_args": {"place": place, "at": at, **more}}]


TIMER = {"class_path": "Timer", "init_args": {"duration": {"microseconds": 1}}}
"""As trainer.max_time, in a unit that the first micro-batch exceeds."""


def run(folder: Path, model: Path, **more: Any) -> Path:
    """The YAML of two rounds of 4 updates, each of 4 micro-batches, with a validation after each."""
    callbacks = {"trainer__callbacks": [EMA]}
    settings = {"trainer__max_epochs": 2, "trainer__check_val_every_n_epoch": 1, "data__rollout_batch": 4}
    return config(folder, model, **(callbacks | settings | more))


@pytest.fixture(scope="module")
def undisturbed(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert guardlit("fit", "--config", run(folder, sd3_folder)) == 0
    return folder


def rows(folder: Path, column: str) -> tuple[list[int], list[float]]:
    """Steps and values that the run's parts have logged of a column, in order."""
    steps, values = [], []
    for file in sorted(folder.rglob("metrics.csv")):
        with file.open() as lines:
            for row in csv.DictReader(lines):
                if row.get(column):
                    steps.append(int(row["step"]))
                    values.append(float(row[column]))
    return steps, values


@pytest.mark.parametrize(
    ("settings", "updates", "micro_batches"),
    [
        ({"trainer__max_steps": 6}, 6, 8),
        ({"trainer__callbacks": stop("on_train_batch_end", 0)}, 0, 1),
        ({"trainer__callbacks": stop("on_train_batch_end", 21)}, 5, 6),
        ({"trainer__callbacks": stop("on_train_batch_start", 14)}, 3, 15),
        ({"trainer__callbacks": stop("on_train_epoch_start", 1)}, 4, 0),
        ({"trainer__callbacks": [EMA, TIMER]}, 0, 1),
    ],
)
def test_a_stopped_run_resumes_as_undisturbed(
    undisturbed: Path, sd3_folder: Path, tmp_path: Path, settings: dict[str, Any], updates: int, micro_batches: int
):
    path = run(tmp_path, sd3_folder, **settings)
    assert guardlit("fit", "--config", path) == 0
    saved = torch.load(newest(tmp_path, "interrupted.ckpt"), weights_only=True)
    assert saved["global_step"] == updates
    assert saved["PromptDataModule"]["transitions"] == 4 * micro_batches
    assert saved["PromptDataModule"]["round"] == saved["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    assert ("gradients" in saved["guardlit"]) == (micro_batches % 4 > 0)
    run(tmp_path, sd3_folder)
    assert guardlit("fit", "--config", path, "--ckpt_path", "last") == 0
    whole, resumed = newest(undisturbed), newest(tmp_path / "runs/version_1")
    assert differing(whole, resumed) == []
    loops = [torch.load(p, weights_only=True)["loops"]["fit_loop"] for p in (whole, resumed)]
    assert loops[0]["epoch_progress"] == loops[1]["epoch_progress"]
    for column in LOGGED:
        (steps, values), (own_steps, own) = rows(undisturbed, column), rows(tmp_path, column)
        assert own_steps == steps != [], column
        assert own == pytest.approx(values, rel=1e-6), column  # float32


def test_one_of_two_ranks_stops_both(sd3_folder: Path, tmp_path: Path):
    two = ("--trainer.devices", 2, "--trainer.strategy", "ddp", "--data.micro_batch", 2)
    path = run(tmp_path, sd3_folder)
    assert forked(tmp_path, "fit", "--config", path, *two).wait() == [0, 0]
    whole = newest(tmp_path)
    run(tmp_path, sd3_folder, trainer__callbacks=stop("on_train_batch_end", 20, rank=1))
    assert forked(tmp_path, "fit", "--config", path, *two).wait() == [0, 0]
    saved = newest(tmp_path)
    assert saved.name == "interrupted.ckpt"
    run(tmp_path, sd3_folder)
    assert forked(tmp_path, "fit", "--config", path, "--ckpt_path", saved, *two).wait() == [0, 0]
    assert differing(whole, newest(tmp_path)) == []


def test_a_callback_that_interrupts_within_a_micro_batch_leaves_the_last_checkpoint(
    undisturbed: Path, sd3_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    path = run(tmp_path, sd3_folder, trainer__callbacks=stop("on_train_batch_start", 21, interrupt=True))
    assert guardlit("fit", "--config", path) == 130
    assert "interrupted at update 5; resume with --ckpt_path" in capfd.readouterr().err
    assert [p.name for p in tmp_path.rglob("*.ckpt")] == ["round_00001.ckpt"]
    run(tmp_path, sd3_folder)
    assert guardlit("fit", "--config", path, "--ckpt_path", "last") == 0
    assert differing(newest(undisturbed), newest(tmp_path)) == []


def test_nothing_is_saved_within_a_micro_batch(sd3_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """The last micro-batch of a round: a checkpoint there would claim the round."""
    save = {"class_path": "troubles.SaveAtStart", "init_args": {"batch": 15}}
    assert guardlit("fit", "--config", run(tmp_path, sd3_folder, trainer__callbacks=[save])) == 2
    assert "a checkpoint within a micro-batch cannot be resumed" in capfd.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_no_time_left_is_an_error(sd3_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = run(tmp_path, sd3_folder, trainer__callbacks=[TIMER])
    assert guardlit("fit", "--config", path) == 0
    assert guardlit("fit", "--config", path, "--ckpt_path", "last") == 2
    assert re.search(r"error: trainer\.max_time: the run .* has taken \d+ s of it already", capfd.readouterr().err)
