"""The noise floor of the log ratio, on one rank and on two."""

from __future__ import annotations

import pytest
import torch
from forked import on_ranks

from guardlit.rounds.noise_floor import noise_floor, report_noise_floor

LIMIT = 1e-4
LOG_RATIO = torch.tensor([[1e-6, 3e-6, 0.0, 4e-6], [5e-6, 0.0, 2e-6, 8e-5]])  # of two ranks
STEP = torch.tensor([[0, 2, 0, 2], [0, 0, 2, 2]])


def outputs(rows: list[int]) -> list[dict[str, torch.Tensor]]:
    """Two micro-batches of each rank in `rows`."""
    return [{"log_ratio": LOG_RATIO[r, half], "step": STEP[r, half]} for r in rows for half in (slice(2), slice(2, 4))]


def alone(rows: torch.Tensor) -> torch.Tensor:
    return rows.unsqueeze(0)


def expected() -> str:
    sizes = {s: LOG_RATIO[s == STEP].double().square().mean().sqrt() for s in (0, 2)}
    listed = " ".join(f"{s}:{size:.1e}" for s, size in sizes.items())
    return f"noise floor of the log ratio by step, before the first update: {listed}; clip range 1.0e-04"


def test_the_noise_floor_is_the_root_mean_square_of_each_step():
    assert noise_floor(outputs([0, 1]), LIMIT, 3, alone) == (expected(), False)


@pytest.mark.parametrize(("narrower", "too_high"), [(1.0, False), (2.0, True)])
def test_it_warns_where_rounding_decides_what_is_clipped(narrower: float, too_high: bool):
    limit = LIMIT / narrower
    assert noise_floor(outputs([0, 1]), limit, 3, alone)[1] == too_high
    if too_high:
        with pytest.warns(UserWarning, match=r"exceeds half of the clip range.*old_velocity: recomputed"):
            report_noise_floor(outputs([0, 1]), limit, 3, alone)


def test_two_ranks_have_the_noise_floor_of_one():
    found = on_ranks(lambda world: noise_floor(outputs([world.rank]), LIMIT, 3, world.gather))
    assert found == [(expected(), False)] * 2
