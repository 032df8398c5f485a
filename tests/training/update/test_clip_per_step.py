"""`clip_range: auto_per_step`: one range for each denoising step, calibrated to the same share."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from forked import on_ranks
from runs import config, differing, guardlit, newest
from torch import Tensor

from guardlit.objective import GRPOGuard, Objective
from guardlit.processes.world import World
from guardlit.rounds.settings import Rollout
from guardlit.training.update.clip_calibration import ALL, ClipCalibration
from guardlit.training.update.followed_limit import FollowedLimit

SCALES = torch.tensor([1e-6, 1e-5, 3e-4])  # of the log ratio at three steps


def alone(rows: Tensor) -> Tensor:
    return rows.unsqueeze(0)


def outputs(growth: float, seed: int) -> list[dict[str, Tensor]]:
    """Two micro-batches of 900 transitions, a third of them at each step; some count for nothing."""
    step = torch.arange(1800) % 3
    size = growth * SCALES[step] * torch.randn(1800, generator=torch.Generator().manual_seed(seed))
    weight = (torch.arange(1800) % 7 != 0).float()
    whole = {"log_ratio": size, "step": step, "sample_weight": weight}
    return [{k: v[half] for k, v in whole.items()} for half in (slice(900), slice(900, None))]


def share(limits: dict[int, float], updates: list[list[dict[str, Tensor]]]) -> list[float]:
    """Of each step's transitions that count, those that exceed its limit."""
    rows = {k: torch.cat([o[k] for update in updates for o in update]) for k in ("log_ratio", "step", "sample_weight")}
    found = []
    for step, limit in limits.items():
        own = rows["log_ratio"][(rows["step"] == step) & (rows["sample_weight"] != 0)]
        found.append(float((own.abs() > limit).double().mean()))
    return found


def test_every_step_clips_the_same_share_however_far_apart_their_ratios_are():
    calibration = ClipCalibration(0.2)
    for index in range(4):
        calibration.observe(index, outputs(0.0, 0), alone, per_step=True)
        for update, growth in enumerate((1.0, 1.5)):
            calibration.observe(index, outputs(growth, 10 * index + update), alone, per_step=True)
    assert list(calibration.limits) == [0, 1, 2]
    assert calibration.limit is None
    shares = share(calibration.limits, [outputs(1.0, 30), outputs(1.5, 31)])
    assert shares == pytest.approx([0.2] * 3, abs=0.03)
    one = ClipCalibration(0.2)
    one.observe(0, outputs(0.0, 0), alone)
    one.observe(0, outputs(1.0, 0), alone)
    uneven = share(dict.fromkeys(range(3), one.limit), [outputs(1.0, 30)])
    assert uneven[0] == 0.0
    assert uneven[2] > 0.5  # one range clips the last step only


def test_a_step_that_a_window_leaves_out_keeps_its_limit():
    calibration = ClipCalibration(0.2)
    calibration.observe(0, outputs(0.0, 0), alone, per_step=True)
    calibration.observe(0, outputs(1.0, 1), alone, per_step=True)
    before = calibration.limits
    for index in (1, 2):
        for growth in (0.0, 5.0):
            only = [{k: v[o["step"] == 1] for k, v in o.items()} for o in outputs(growth, 2)]
            calibration.observe(index, only, alone, per_step=True)
    after = calibration.limits
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] > 3 * before[1]


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_a_restored_calibration_resumes_exactly(after: int):
    def run(stop: int | None) -> list[dict[int, float]]:
        calibration, limits = ClipCalibration(), []
        for update in range(6):
            growth = 0.0 if update % 2 == 0 else 1.0 + update
            calibration.observe(update // 2, outputs(growth, update), alone, per_step=True)
            limits.append(calibration.limits)
            if update + 1 == stop:
                state, calibration = calibration.state_dict(), ClipCalibration()
                calibration.load_state_dict(state)
        return limits

    assert run(after) == run(None)


def test_the_state_of_an_earlier_version_is_one_limit():
    calibration = ClipCalibration()
    state = {"limit": 2e-5, "growth": 1.5, "sizes": [torch.ones(3).double()], "round": 3, "updates": 2}
    calibration.load_state_dict(state)
    assert calibration.limits == {ALL: 2e-5}
    kept = {k: state[k] for k in ("limit", "growth", "sizes")}
    assert calibration.state_dict()["limits"][ALL] == {**kept, "from_first": True}


@dataclass
class Module:
    """What the calibration reads of a module."""

    objective: Objective
    outputs: list[dict[str, Tensor]] = field(default_factory=list)
    rollout: Rollout = field(default_factory=Rollout)
    elements: int = 64
    round_index: int = 0
    world: World = field(default_factory=World.single)
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))


@pytest.mark.parametrize(("before", "after"), [("auto", "auto_per_step"), ("auto_per_step", "auto")])
def test_a_resumed_run_may_have_the_other_kind_of_ranges(before: str, after: str):
    first, module = ClipCalibration(), Module(GRPOGuard(clip_range=before))
    for growth in (0.0, 1.0):
        module.outputs = outputs(growth, 1)
        first.update(module)
    second, resumed = ClipCalibration(), Module(GRPOGuard(clip_range=after))
    second.load_state_dict(first.state_dict())
    second.apply(resumed)  # nothing is known of the new kind yet
    assert (resumed.objective.clip_range, resumed.objective.bound.step_limits) == (None, None)
    for growth in (0.0, 1.0):
        resumed.round_index, resumed.outputs = 1, outputs(growth, 2)
        logged = second.update(resumed)
    steps = [f"train/clip_range/t{step:02d}" for step in range(3)]
    assert list(logged) == (["train/clip_range"] if after == "auto" else steps)
    assert (resumed.objective.clip_range is None) == (after == "auto_per_step")
    assert (resumed.objective.bound.step_limits is None) == (after == "auto")


def test_a_limit_that_a_round_saw_late_keeps_its_growth():
    """A window may show a step in a round's later updates alone, whose sizes say nothing of its first."""
    followed = FollowedLimit(0.2, 0.0)
    for sizes, first in ((torch.rand(100).double(), True), (3 * torch.rand(100).double(), False)):
        followed.observe(sizes, first)
    followed.finish_round()
    growth = followed.state_dict()["growth"]
    followed.observe(3 * torch.rand(100).double(), first=False)
    followed.finish_round()
    assert followed.state_dict()["growth"] == growth > 1.5


def _limits(world: World) -> dict[int, float]:
    calibration = ClipCalibration()
    for growth in (0.0, 1.0):
        both = outputs(growth, 4)
        calibration.observe(0, both if world.size == 1 else [both[world.rank]], world.gather, per_step=True)
    return calibration.limits


def test_two_ranks_find_the_ranges_of_one():
    assert on_ranks(_limits) == [_limits(World.single())] * 2


@pytest.mark.parametrize("name", ["GRPOGuard", "FlowDPPO"])
def test_a_run_finds_a_range_for_each_step_logs_them_and_resumes_with_them(name: str, sd3_folder: Path, tmp_path: Path):
    objective = {"class_path": name, "init_args": {"clip_range": "auto_per_step"}}
    keep = {"save_top_k": -1, "filename": "update_{step}", "every_n_train_steps": 1, "auto_insert_metric_name": False}
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": keep}]
    path = config(tmp_path, sd3_folder, model__objective=objective, trainer__callbacks=callbacks)
    assert guardlit("fit", "--config", path) == 0
    with (tmp_path / "runs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = sorted(key for key in rows[0] if key.startswith("train/clip_range"))
    assert keys == [f"train/clip_range/t{step:02d}" for step in range(4)]
    ranges = [[float(row[key]) for key in keys] for row in rows if row[keys[0]]]
    assert len(ranges) == 3 * 4 - 1  # all updates but the first
    assert all(math.isfinite(end) and end > 0 for ends in ranges for end in ends)
    assert len(set(ranges[-1])) == 4
    saved = {p.stem: p for p in tmp_path.rglob("update_*.ckpt")}
    for stop in ("update_2", "update_7"):
        runs = tmp_path / stop
        assert guardlit("fit", "--config", path, "--ckpt_path", saved[stop], "--trainer.default_root_dir", runs) == 0
        assert differing(saved["update_12"], newest(runs, "update_12.ckpt")) == []
