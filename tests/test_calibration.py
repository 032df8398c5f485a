"""`clip_range: auto`: the range that clips the target's share, and when it is left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from guardlit.calibration import ClipCalibration, ClipTarget
from guardlit.errors import GuardlitError
from guardlit.objective import FlowGRPO, GRPOGuard, Objective, TempFlowGRPO

ELEMENTS = 64


def alone(rows: Tensor) -> Tensor:
    return rows.unsqueeze(0)


def outputs(scale: float, seed: int, weight: float = 1.0) -> list[dict[str, Tensor]]:
    """Two micro-batches of 500 transitions whose log ratios are normal."""
    log_ratio = scale * torch.randn(1000, generator=torch.Generator().manual_seed(seed))
    weights = torch.full((1000,), weight)
    return [{"log_ratio": log_ratio[half], "sample_weight": weights[half]} for half in (slice(500), slice(500, None))]


def clipped_share(objective: Objective, scale: float, seed: int) -> float:
    log_ratio = torch.cat([o["log_ratio"] for o in outputs(scale, seed)]).double()
    low, high = objective.log_bounds(ELEMENTS)
    return float(((log_ratio < low) | (log_ratio > high)).double().mean())


def a_round(calibration: ClipCalibration, scale: float, seed: int) -> None:
    calibration.begin_round()
    calibration.observe(outputs(0.0, seed), alone)  # on-policy
    calibration.observe(outputs(scale, seed), alone)


@pytest.mark.parametrize("unit", ["mean", "sum"])
def test_the_first_off_policy_update_sets_the_range(unit):
    objective = GRPOGuard(clip_range="auto", clip_unit=unit)
    calibration = ClipCalibration(objective, ClipTarget(0.2), ELEMENTS)
    assert objective.log_bounds(ELEMENTS) == (-math.inf, math.inf)
    assert calibration.metrics() == {}
    a_round(calibration, 1e-5, seed=1)
    assert clipped_share(objective, 1e-5, seed=1) == pytest.approx(0.2, abs=2e-3)
    normal = 1.2816 * 1e-5  # 10 % of a normal lie above 1.2816 standard deviations, and 10 % below
    assert calibration.metrics()["train/clip_range"] == pytest.approx(
        normal * (ELEMENTS if unit == "sum" else 1), rel=0.1
    )


def test_a_share_within_the_tolerance_changes_nothing_and_one_outside_does():
    objective = GRPOGuard(clip_range="auto")
    calibration = ClipCalibration(objective, ClipTarget(0.2, tolerance=0.05), ELEMENTS)
    a_round(calibration, 1e-5, seed=1)
    first = objective.clip_range
    a_round(calibration, 1.05e-5, seed=2)  # about 22 %
    calibration.begin_round()
    assert objective.clip_range == first
    calibration.observe(outputs(0.0, 3), alone)
    calibration.observe(outputs(2e-5, 3), alone)  # about 52 %
    assert objective.clip_range == first  # judged when the round is over
    calibration.begin_round()
    assert clipped_share(objective, 2e-5, seed=3) == pytest.approx(0.2, abs=2e-3)


def test_masked_transitions_and_other_ranges_play_no_part():
    objective = GRPOGuard(clip_range="auto")
    calibration = ClipCalibration(objective, ClipTarget(), ELEMENTS)
    calibration.observe(outputs(0.0, 1), alone)
    calibration.observe(outputs(1.0, 1, weight=0.0), alone)
    assert objective.clip_range is None
    fixed = FlowGRPO(clip_range=1e-4)
    calibration = ClipCalibration(fixed, ClipTarget(), ELEMENTS)
    a_round(calibration, 1e-2, seed=1)
    calibration.begin_round()
    assert fixed.clip_range == (1e-4, 1e-4)
    assert calibration.metrics() == {}


def test_two_processes_find_the_range_of_one():
    whole, halves = GRPOGuard(clip_range="auto"), GRPOGuard(clip_range="auto")
    one, two = (ClipCalibration(o, ClipTarget(), ELEMENTS) for o in (whole, halves))
    for scale in (0.0, 1e-5):
        both = outputs(scale, seed=4)
        one.observe(both, alone)
        two.observe(both[:1], lambda rows, other=both[1]: torch.stack([rows, other["log_ratio"].abs().double()]))
    assert whole.clip_range == halves.clip_range is not None


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_a_restored_calibration_goes_on_as_if_it_had_never_stopped(after: int):
    def run(stop: int | None) -> list[tuple[float, float] | None]:
        objective = GRPOGuard(clip_range="auto")
        calibration = ClipCalibration(objective, ClipTarget(), ELEMENTS)
        ranges = []
        for update in range(6):
            if update % 2 == 0:
                calibration.begin_round()
            calibration.observe(outputs(0.0 if update % 2 == 0 else 1e-5 * (1 + update), seed=update), alone)
            ranges.append(objective.clip_range)
            if update + 1 == stop:
                state = calibration.state_dict()
                objective = GRPOGuard(clip_range="auto")
                calibration = ClipCalibration(objective, ClipTarget(), ELEMENTS)
                calibration.load_state_dict(state)
        return ranges

    assert run(after) == run(None)


@pytest.mark.parametrize("numbers", [(0.0, 0.0), (1.0, 0.1), (0.2, 0.2), (0.2, -0.1)])
def test_targets_that_make_no_sense(numbers: tuple[float, float]):
    with pytest.raises(GuardlitError, match="clip_target"):
        ClipTarget(*numbers)


def test_tempflow_weights_are_1_on_average_over_the_trained_steps():
    """The weights published for SD3.5-M's nine steps at noise level 0.7 are s over its mean: 1.58, 1.67, ... 0.51."""
    from guardlit.sde import FlowSDE, flow_match_sigmas

    c = FlowSDE(0.7).coefficients(flow_match_sigmas(10))
    steps = (c.velocity[:9], c.std[:9], c.dt[:9])
    objective = TempFlowGRPO()
    objective.on_schedule(*steps)
    weights = objective.step_weight(*steps)
    assert float(weights.mean()) == pytest.approx(1)
    assert weights.tolist() == pytest.approx([1.58, 1.67, 1.21, 1.0, 0.88, 0.8, 0.72, 0.64, 0.51], abs=6e-3)
