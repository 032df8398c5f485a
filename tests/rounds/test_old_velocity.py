"""Which velocity the old policy's is, by values alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.objective import GRPOGuard
from guardlit.rounds.old_policy import FLOOR, OldPolicy
from guardlit.types import Transition

OWN, AGAIN = torch.full((2, 1, 2, 2), 1.0), torch.full((2, 1, 2, 2), 3.0)
BLANK = Transition.blank(2, (1, 2, 2), {}, "cpu")
BATCH = replace(BLANK, noise=torch.ones_like(BLANK.noise))  # whose stored velocity is 0
FIRST = 4  # micro-batches of a round's first update


def source(mode: str, batch_idx: int | None, untouched: bool = False, decided: str | None = None) -> str:
    old = OldPolicy(mode)
    old.first_update, old.decided = FIRST, decided
    velocity = old.velocity(BATCH, OWN.clone().requires_grad_(), batch_idx, untouched, lambda: AGAIN)
    assert not velocity.requires_grad
    return {0.0: "stored", 1.0: "own", 3.0: "again"}[float(velocity.mean())]


CASES = [  # mode, index of the micro-batch, whether the run is untouched, what auto has decided; the source
    ("stored", 0, True, None, "stored"),
    ("stored", FIRST, False, None, "stored"),
    ("recomputed", 0, True, None, "again"),  # measures the noise floor
    ("recomputed", 0, False, None, "own"),
    ("recomputed", FIRST - 1, False, None, "own"),
    ("recomputed", FIRST, False, None, "again"),
    ("recomputed", None, False, None, "again"),
    ("auto", 0, True, None, "own"),  # measures by comparing
    ("auto", FIRST, False, None, "again"),
    ("auto", FIRST, False, "stored", "stored"),
    ("auto", FIRST, False, "recomputed", "again"),
    ("auto", 0, False, "stored", "own"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_source_of_a_velocity(case: tuple):
    assert source(*case[:-1]) == case[-1]


def outputs(old: OldPolicy, stored_error: float) -> list[dict[str, Tensor]]:
    """The outputs of an update whose stored velocities are off by so much."""
    objective, found = GRPOGuard(1e-4), []
    for index in range(FIRST):
        own = torch.full((2, 1, 2, 2), stored_error)
        found.append({"log_ratio": torch.zeros(2), "step": BATCH.step} | old.compare(objective, BATCH, own, index))
    return found


def update(old: OldPolicy, stored_error: float, untouched: bool = True) -> None:
    old.first_update = FIRST
    measured = outputs(old, stored_error)
    old.before_update(measured, GRPOGuard(1e-4), 4, 3, untouched, lambda rows: rows.unsqueeze(0))


@pytest.mark.parametrize(("error", "decided"), [(0.0, "stored"), (1.0, "recomputed")])
def test_auto_decides_by_the_noise_floor_and_only_once(error: float, decided: str):
    old = OldPolicy("auto")
    update(old, error)
    assert old.decided == decided
    assert outputs(old, error)[0].keys() == {"log_ratio", "step"}  # measures no more
    again = OldPolicy("auto")
    again.load_state_dict(old.state_dict())
    assert again.decided == decided


def test_the_noise_floor_is_reported_before_the_first_update_only(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    for untouched, lines in ((True, 1), (False, 1)):
        update(OldPolicy("stored"), 0.0, untouched)
        assert sum("noise floor" in r.getMessage() for r in caplog.records) == lines


def test_a_round_without_velocities_cannot_be_resumed_with_stored_ones():
    with pytest.raises(GuardlitError, match="resume with recomputed, or from the end of a round"):
        OldPolicy("stored").restores({"latents": 0})
    assert OldPolicy("stored").restores({"velocity": 0})
    assert not OldPolicy("recomputed").restores({"velocity": 0})
    assert OldPolicy("auto").restores({})
    assert FLOOR == "noise_floor"  # checkpoints within an update hold it
