"""`clip_range: auto`: the range that clips the target fraction, and when it stays."""

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

from guardlit.objective import GRPOGuard, Objective, TempFlowGRPO
from guardlit.processes.world import World
from guardlit.rounds.settings import Rollout
from guardlit.training.update.clip_calibration import ClipCalibration


def alone(rows: Tensor) -> Tensor:
    return rows.unsqueeze(0)


def outputs(scale: float, seed: int, weight: float = 1.0) -> list[dict[str, Tensor]]:
    """Two micro-batches of 500 transitions whose log ratios are normal."""
    log_ratio = scale * torch.randn(1000, generator=torch.Generator().manual_seed(seed))
    weights = torch.full((1000,), weight)
    return [{"log_ratio": log_ratio[half], "sample_weight": weights[half]} for half in (slice(500), slice(500, None))]


def clipped_fraction(limit: float, scale: float, seed: int) -> float:
    return float((torch.cat([o["log_ratio"] for o in outputs(scale, seed)]).abs() > limit).double().mean())


def a_round(calibration: ClipCalibration, index: int, scale: float) -> float | None:
    """An on-policy update and one that is off-policy."""
    calibration.observe(index, outputs(0.0, index), alone)
    return calibration.observe(index, outputs(scale, index), alone)


def test_the_first_off_policy_update_sets_the_range():
    calibration = ClipCalibration(0.2)
    assert calibration.observe(0, outputs(0.0, 0), alone) is None
    limit = calibration.observe(0, outputs(1e-5, 1), alone)
    assert clipped_fraction(limit, 1e-5, 1) == pytest.approx(0.2, abs=2e-3)
    assert limit == pytest.approx(1.2816e-5, rel=0.1)  # 20 % of a normal lie beyond 1.2816 standard deviations


def test_a_fraction_within_the_tolerance_changes_nothing_and_one_outside_does():
    calibration = ClipCalibration(0.2, tolerance=0.05)

    def two(index: int, first: float, second: float) -> None:
        a_round(calibration, index, first)
        calibration.observe(index, outputs(second, 10 + index), alone)

    two(0, 1e-5, 1e-5)
    before = calibration.limit
    two(1, 1.05e-5, 1.05e-5)  # about 22 %
    two(2, 1e-5, 2e-5)  # about 36 %, corrected when the round is over
    assert calibration.limit == before
    limit = calibration.observe(3, outputs(0.0, 3), alone)
    assert (clipped_fraction(limit, 1e-5, 2) + clipped_fraction(limit, 2e-5, 12)) / 2 == pytest.approx(0.2, abs=2e-3)


def test_a_change_of_scale_is_followed_within_the_round():
    """Log ratios grow threefold from a round's second update to its last; a round of half the size clips as many."""

    def three(calibration: ClipCalibration, index: int, scale: float) -> list[float]:
        calibration.observe(index, outputs(0.0, index), alone)
        limits = [calibration.observe(index, outputs(k * scale, 10 * index + k), alone) for k in (1, 2, 3)]
        return [clipped_fraction(limit, k * scale, 10 * index + k) for limit, k in zip(limits, (1, 2, 3), strict=True)]

    calibration = ClipCalibration(0.2)
    three(calibration, 0, 1e-5)
    for index, scale in ((1, 1e-5), (2, 0.5e-5), (3, 2e-5)):
        assert sum(three(calibration, index, scale)) / 3 == pytest.approx(0.2, abs=0.02)
    before = calibration.limit
    three(calibration, 4, 2.1e-5)  # too little to follow
    assert calibration.limit == before


def test_masked_transitions_play_no_part():
    calibration = ClipCalibration()
    calibration.observe(0, outputs(0.0, 1), alone)
    assert calibration.observe(0, outputs(1.0, 1, weight=0.0), alone) is None


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_a_restored_calibration_resumes_exactly(after: int):
    def run(stop: int | None) -> list[float | None]:
        calibration, limits = ClipCalibration(), []
        for update in range(6):
            scale = 0.0 if update % 2 == 0 else 1e-5 * (1 + update)
            limits.append(calibration.observe(update // 2, outputs(scale, update), alone))
            if update + 1 == stop:
                state, calibration = calibration.state_dict(), ClipCalibration()
                calibration.load_state_dict(state)
        return limits

    assert run(after) == run(None)


@dataclass
class Module:
    """A module in its first round."""

    objective: Objective
    outputs: list[dict[str, Tensor]]
    elements: int = 64
    round_index: int = 0
    rollout: Rollout = field(default_factory=Rollout)
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    world: World = field(default_factory=World.single)


def test_it_sets_the_range_of_an_objective_that_asks_for_one():
    calibration, module = ClipCalibration(), Module(GRPOGuard(clip_range="auto"), outputs(0.0, 1))
    assert calibration.update(module) == {}  # on-policy
    module.outputs = outputs(1e-5, 2)
    assert calibration.update(module) == {"train/clip_range": math.expm1(calibration.limit)}
    assert module.objective.clip_range[1] == math.expm1(calibration.limit)
    resumed, other = ClipCalibration(), Module(GRPOGuard(clip_range="auto"), [])
    resumed.load_state_dict(calibration.state_dict())
    resumed.apply(other)
    assert other.objective.clip_range == module.objective.clip_range


def test_it_leaves_a_range_that_is_given():
    calibration, module = ClipCalibration(), Module(GRPOGuard(clip_range=1e-3), outputs(1e-5, 2))
    assert calibration.update(module) == calibration.update(module) == {}
    assert (calibration.limit, module.objective.clip_range) == (None, (1e-3, 1e-3))


def _limit(world: World) -> float | None:
    calibration = ClipCalibration()
    module = Module(GRPOGuard(clip_range="auto"), [], world=world)
    for scale in (0.0, 1e-5):
        both = outputs(scale, 4)
        module.outputs = both if world.size == 1 else [both[world.rank]]
        calibration.update(module)
    return calibration.limit


def test_two_ranks_find_the_range_of_one():
    assert on_ranks(_limit) == [_limit(World.single())] * 2


@pytest.mark.parametrize("numbers", [(0.0, 0.0), (1.0, 0.1), (0.2, 0.2), (0.2, -0.1)])
def test_numbers_that_make_no_sense(numbers: tuple[float, float]):
    with pytest.raises(ValueError, match="ClipCalibration: fraction"):
        ClipCalibration(*numbers)


@pytest.mark.parametrize("unit", ["mean", "sum"])
def test_an_objective_clips_at_the_log_ratio_it_is_given(unit):
    objective = GRPOGuard(clip_range="auto", clip_unit=unit)
    assert objective.log_bounds(64) == (-math.inf, math.inf)
    objective.calibrate(1e-5, 64)
    assert objective.log_bounds(64) == pytest.approx((-1e-5, 1e-5), rel=1e-9)
    with pytest.raises(ValueError, match="positive and finite"):
        objective.calibrate(0.0, 64)


def test_a_run_finds_its_range_logs_it_and_resumes_with_it(sd3_folder: Path, tmp_path: Path):
    objective = {"class_path": "GRPOGuard", "init_args": {"clip_range": "auto"}}
    keep = {"save_top_k": -1, "filename": "update_{step}", "every_n_train_steps": 1, "auto_insert_metric_name": False}
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": keep}]
    path = config(tmp_path, sd3_folder, model__objective=objective, trainer__callbacks=callbacks)
    assert guardlit("fit", "--config", path) == 0
    with (tmp_path / "runs/version_0/metrics.csv").open() as file:
        ranges = [float(row["train/clip_range"]) for row in csv.DictReader(file) if row.get("train/clip_range")]
    assert len(ranges) == 3 * 4 - 1  # all updates but the first
    assert len(set(ranges[:3])) == 3  # every update of the first round
    for start in (3, 7):  # then at a round's start, and after its first off-policy update
        assert ranges[start + 1] == ranges[start + 2] == ranges[start + 3]
    saved = {p.stem: p for p in tmp_path.rglob("update_*.ckpt")}
    for stop in ("update_2", "update_3", "update_4", "update_7"):
        runs = tmp_path / stop
        assert guardlit("fit", "--config", path, "--ckpt_path", saved[stop], "--trainer.default_root_dir", runs) == 0
        assert differing(saved["update_12"], newest(runs, "update_12.ckpt")) == []


def test_tempflow_weights_are_1_on_average_over_the_trained_steps():
    """The weights published for SD3.5-M's nine steps at noise level 0.7 are s over its mean: 1.58, 1.67, ... 0.51."""
    from guardlit.sde import FlowSDE, flow_match_sigmas

    c = FlowSDE(0.7).coefficients(flow_match_sigmas(10))
    steps = (c.velocity[:9], c.std[:9], c.dt[:9])
    objective = TempFlowGRPO()
    objective.bind(*steps)
    weights = objective.step_weight(*steps)
    assert float(weights.mean()) == pytest.approx(1)
    assert weights.tolist() == pytest.approx([1.58, 1.67, 1.21, 1.0, 0.88, 0.8, 0.72, 0.64, 0.51], abs=6e-3)
