"""Advantages by image and step, with the diversity of the images in them: whole runs."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gardo import gardo
from runs import EVERY_UPDATE, config, differing, guardlit, newest, two_ranks
from tiny_folders import make_dino

from guardlit.advantage import Advantages, GroupAdvantage
from guardlit.training.module import GRPOModule

SEVERAL = Path(__file__).parents[1] / "support" / "several.py"
STEPS, IMAGES = 4, 8


def changes(dino: Path, advantage: str = "last_step.LastStep", **more: object) -> dict[str, object]:
    """Of a run that trains on brightness, and tells images apart by a term of weight 0."""
    terms = [
        {"scorer": "brightness.Brightness"},
        {"scorer": {"class_path": "DINO", "init_args": {"model": str(dino)}}, "weight": 0},
    ]
    settings = {"std": "none", "clip": None, "diversity": "dino"}
    return {
        "model__reward": {"class_path": "Composite", "init_args": {"terms": terms}},
        "model__advantage": {"class_path": advantage, "init_args": settings},
        "data__rollout_batch": 2,
        "data__micro_batch": 2,
        "data__val": None,
        "trainer__max_epochs": 1,
        **more,
    }


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """Collects what advantages are made of."""
    found: list[dict[str, np.ndarray]] = []
    original = GroupAdvantage.__call__

    def call(self: GroupAdvantage, rewards: Any, groups: Any, weights: Any = None, **others: Any) -> Advantages:
        found.append({"rewards": rewards["brightness"], "groups": groups, "features": others["features"]})
        return original(self, rewards, groups, weights, **others)

    monkeypatch.setattr(GroupAdvantage, "__call__", call)
    return found


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int], float]:
    """Collects the advantage of each transition, by image and step."""
    found: dict[tuple[int, int], float] = {}
    original = GRPOModule.training_step

    def step(self: GRPOModule, batch: Any, batch_idx: int) -> Any:
        keys = zip(batch.sample.tolist(), batch.step.tolist(), strict=True)
        found.update(zip(keys, batch.advantage.tolist(), strict=True))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(GRPOModule, "training_step", step)
    return found


def logged(folder: Path, key: str) -> list[float]:
    with max(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime).open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def test_each_step_trains_on_its_own_and_a_resume_within_the_round_too(sd3_folder, dino, tmp_path, asked, trained):
    callbacks = [{"class_path": "guardlit_callbacks.TrainableEMA"}, EVERY_UPDATE]
    path = config(tmp_path, sd3_folder, **changes(dino, trainer__callbacks=callbacks))
    assert guardlit("fit", "--config", path) == 0
    (round,) = ({name: value.double().numpy() for name, value in one.items()} for one in asked)
    expected = STEPS * gardo(round["rewards"], round["features"], round["groups"])
    assert len(trained) == IMAGES * STEPS
    for (image, step), advantage in trained.items():
        assert advantage == pytest.approx(expected[image] if step == STEPS - 1 else 0, rel=1e-5, abs=1e-7)
    assert np.abs(expected).max() > 1e-3
    size = np.abs(expected).mean() / STEPS
    assert np.mean(logged(tmp_path, "train/advantage_abs")) == pytest.approx(size, rel=1e-4)
    checkpoints = tmp_path / "runs/version_0/checkpoints"
    again = tmp_path / "again"
    options = ("--ckpt_path", checkpoints / "update_1.ckpt", "--trainer.default_root_dir", again)
    assert guardlit("fit", "--config", path, *options) == 0
    assert len(asked) == 1  # the round was not scored again
    assert differing(newest(tmp_path / "runs", "update_4.ckpt"), newest(again, "update_4.ckpt")) == []


def test_two_ranks_train_on_what_one_does(sd3_folder, dino, tmp_path, asked):
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 100.0}}
    paths = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths[name] = config(tmp_path / name, sd3_folder, **changes(dino, model__optimizer=sgd))
    assert guardlit("fit", "--config", paths["one"]) == 0
    assert two_ranks(SEVERAL, paths["two"]).returncode == 0
    assert (tmp_path / "two/process_1.txt").read_text().endswith("exit code 0\n")
    one, two = (torch.load(newest(tmp_path / name), weights_only=True)["state_dict"] for name in paths)
    moved = max(float(v.abs().max()) for k, v in one.items() if "lora_B" in k)
    assert moved > 1e-5
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-4 * moved)
    found = [logged(tmp_path / name, "reward/diversity") for name in paths]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0][0] > 0


WRONG = {
    "another size": (
        {"model__advantage": "last_step.OneForAll", "trainer__max_epochs": 1},
        "model.advantage: OneForAll gave values (1,) and a mask (1,); values are (8,), one per image, or (8, 4), one "
        "per image and trained step, and the mask is (8,)",
    ),
    "no such term": (
        {"model__advantage__diversity": "dino"},
        "model.advantage.diversity=dino: the reward has no term of this name; there are jpeg_compressibility",
    ),
    "no features": (
        {"model__advantage__diversity": "jpeg_compressibility"},
        "model.advantage.diversity=jpeg_compressibility: JPEGCompressibility gives no features of images; name a term "
        "that does, such as a DINO of weight 0",
    ),
    "a server": (
        {
            "model__reward": {"class_path": "RemoteReward", "init_args": {"url": "http://127.0.0.1:9"}},
            "model__advantage__diversity": "remotereward",
        },
        "model.advantage.diversity=remotereward: RemoteReward gives no features of images; name a term that does, such "
        "as a DINO of weight 0",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_cannot_be_is_one_line(mistake: str, sd3_folder: Path, tmp_path: Path, capsys):
    settings, says = WRONG[mistake]
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **settings)) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(says)
