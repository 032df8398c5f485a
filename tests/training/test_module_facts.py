"""The module without a run: what it computes from its arguments."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from brightness import Brightness
from guardlit_callbacks.distributed import gradient_norm, total_norm
from small_policy import SmallPolicy

from guardlit.errors import GuardlitError
from guardlit.objective import GRPOGuard, TempFlowGRPO
from guardlit.rounds.settings import Rollout
from guardlit.sde import ODE
from guardlit.training.linter import Linter
from guardlit.training.module import GRPOModule
from guardlit.training.update.clip_calibration import ClipCalibration

ROLLOUT = Rollout(num_inference_steps=4, guidance_scale=1.0, timestep_fraction=0.75)


def module(**changes: object) -> GRPOModule:
    return GRPOModule(SmallPolicy(), Brightness(), **{"rollout": ROLLOUT, **changes})


def test_coefficients_change_nothing():
    objective = TempFlowGRPO()
    made, before = module(objective=objective), dict(vars(objective))
    first, second = made.coefficients(), made.coefficients()
    assert torch.equal(first.std, second.std)
    assert vars(objective) == before
    objective.bind(*first.between(0, 3))
    assert vars(objective) != before  # what binding would have changed


def test_a_sampler_without_noise_is_refused():
    with pytest.raises(GuardlitError, match=r"ODE draws no noise at trained steps \[0, 1, 2\]"):
        module(sde=ODE()).coefficients()


@pytest.mark.parametrize("auto", [False, True])
def test_it_installs_what_a_script_would_miss_once(auto: bool):
    made = module(objective=GRPOGuard(clip_range="auto" if auto else 1e-5))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    made.trainer = pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet)
    kinds = [Linter, ClipCalibration] if auto else [Linter]
    assert [type(callback) for callback in made.configure_callbacks()] == kinds
    given = [kind() for kind in kinds]
    made.trainer = pl.Trainer(accelerator="cpu", enable_model_summary=False, callbacks=given, **quiet)
    assert made.configure_callbacks() == []


def test_the_callbacks_share_the_module_s_gradient_norm():
    """One norm an update: no method or attribute of the module stands in front of the shared one."""
    made = module()
    made.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    made.trainer.optimizers = [torch.optim.SGD(made.parameters(), 0.1)]
    made.policy.scale.grad = torch.tensor(3.0)
    norm = gradient_norm(made)
    assert norm == total_norm([made.policy.scale.grad]) == 3
    assert gradient_norm(made) is norm
    made.policy.scale.grad *= 2
    assert gradient_norm(made) == 6


def test_merged_rollouts_recompute():
    assert module(old_velocity="auto", rollout=Rollout(merge=True)).old_velocity == "recomputed"
    assert module(old_velocity="auto").old_velocity == "auto"
