"""The tables have an entry for everything that Lightning and torch offer, and docs/trainer.md is written from them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch import callbacks, loggers

import guardlit as gl
from guardlit.training.limits.arguments import ARGUMENTS, check_arguments
from guardlit.training.limits.callbacks import CALLBACKS, LOGGERS, check_callbacks, check_monitors
from guardlit.training.limits.entry import Entry
from guardlit.training.limits.optimizers import OPTIMIZERS, SCHEDULERS, check_optimizer, check_scheduler
from guardlit.training.limits.page import page

NO_CLASS = {"lr_scheduler", "Optimizer", "swap_in_optimizer_params_and_state", "swa_utils"}
"""Names of torch.optim that are no optimizers."""

ONLY_OLD, ONLY_NEW = {"NeptuneLogger"}, {"LitLogger"}
"""Of Lightning 2.6.0, and of later versions."""


@pytest.mark.parametrize(
    ("table", "offered"),
    [
        (ARGUMENTS, inspect.signature(pl.Trainer).parameters),
        (CALLBACKS, callbacks.__all__),
        (LOGGERS, loggers.__all__),
        (OPTIMIZERS, set(torch.optim.__all__) - NO_CLASS),
        (SCHEDULERS, torch.optim.lr_scheduler.__all__),
    ],
)
def test_every_part_has_an_entry(table: Mapping[str, Entry], offered: Any):
    assert set(offered) - ONLY_OLD <= set(table)
    assert set(table) - set(offered) <= ONLY_NEW
    for name, entry in table.items():
        assert entry.describe(), name


def test_the_page_is_that_of_the_tables():
    written = (Path(__file__).parents[3] / "docs/trainer.md").read_text(encoding="utf-8")
    assert written == page(), "write it again: python -m guardlit.training.limits.page > docs/trainer.md"


# arguments --------------------------------------------------------------------------------------------------------

REFUSED = [
    ("accelerator", "mps"),
    ("accelerator", "tpu"),
    ("strategy", "ddp_spawn"),
    ("strategy", "ddp_notebook"),
    ("strategy", "deepspeed"),
    ("num_nodes", 0),
    ("precision", 64),
    ("precision", "64-true"),
    ("precision", "transformer-engine"),
    ("max_epochs", -2),
    ("limit_train_batches", 1),
    ("limit_train_batches", 0.5),
    ("limit_train_batches", 0),
    ("limit_test_batches", 1),
    ("limit_predict_batches", 1),
    ("overfit_batches", 1),
    ("overfit_batches", 0.5),
    ("val_check_interval", 0.5),
    ("val_check_interval", 1),
    ("val_check_interval", "00:00:10:00"),
    ("check_val_every_n_epoch", 0),
    ("num_sanity_val_steps", -2),
    ("log_every_n_steps", -1),
    ("gradient_clip_val", -1),
    ("use_distributed_sampler", True),
    ("profiler", "xla"),
    ("barebones", True),
    ("sync_batchnorm", True),
    ("model_registry", "owner/name"),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_refused_argument_is_one_line_before_anything_loads(name: str, value: Any):
    with pytest.raises(gl.GuardlitError, match=rf"^trainer\.{name}={value}") as error:
        gl.Trainer(**{"accelerator": "cpu", name: value})
    assert "\n" not in str(error.value)
    with pytest.raises(gl.GuardlitError, match=rf"^trainer\.{name}={value}(: | must )"):
        check_arguments({name: value})


def test_every_argument_that_may_be_refused_is_tried():
    plugins = {"plugins"}
    assert {name for name, entry in ARGUMENTS.items() if entry.refused} == {name for name, _ in REFUSED} | plugins


def test_lightnings_defaults_are_accepted_but_one():
    """`use_distributed_sampler` is true there; a run's default is false."""
    defaults = {name: p.default for name, p in inspect.signature(pl.Trainer).parameters.items()}
    check_arguments(defaults | {"use_distributed_sampler": False})
    check_arguments({"limit_train_batches": 1.0, "overfit_batches": 0, "val_check_interval": 1.0, "min_epochs": 1})


def test_a_precision_plugin_is_as_its_argument():
    from lightning.pytorch.plugins import DoublePrecision, TorchSyncBatchNorm

    for plugin in (DoublePrecision(), TorchSyncBatchNorm()):
        with pytest.raises(gl.GuardlitError, match=f"trainer.plugins=.*{type(plugin).__name__}"):
            gl.Trainer(accelerator="cpu", plugins=[plugin])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"max_epochs": "3"}, "trainer.max_epochs: expected int, found '3'"),
        ({"max_steps": 2.5}, "trainer.max_steps: expected int, found 2.5"),
        ({"max_time": 5}, "trainer.max_time: expected str or timedelta or dict, found 5"),
        ({"logger": 5}, "trainer.logger: expected bool or Logger, found 5"),
        ({"callbacks": "Timer"}, "trainer.callbacks: expected Callback, found 'Timer'"),
        (
            {"callbacks": [callbacks.Timer]},
            "trainer.callbacks: expected Callback, found the class Timer, not an instance",
        ),
    ],
)
def test_a_value_of_another_type_is_one_line_in_a_script_too(argument: dict[str, Any], message: str):
    with pytest.raises(gl.GuardlitError, match=f"^{re.escape(message)}$"):
        gl.Trainer(accelerator="cpu", **argument)


@pytest.mark.parametrize(("least", "most"), [("min_epochs", "max_epochs"), ("min_steps", "max_steps")])
def test_a_minimum_above_the_maximum_is_refused(least: str, most: str):
    with pytest.raises(gl.GuardlitError, match=f"trainer.{least}=5 is more than trainer.{most}=2"):
        gl.Trainer(accelerator="cpu", **{least: 5, most: 2})


# callbacks --------------------------------------------------------------------------------------------------------


def made() -> list[pl.Callback]:
    """One of each of Lightning's callbacks that is refused."""
    c = callbacks
    return [
        c.BackboneFinetuning(),
        c.BatchSizeFinder(),
        c.GradientAccumulationScheduler({0: 2}),
        c.LearningRateFinder(),
        c.ModelCheckpoint(save_on_exception=True),
        c.ModelPruning("l1_unstructured"),
        c.OnExceptionCheckpoint("."),
        c.StochasticWeightAveraging(1e-3),
        c.SpikeDetection(),
        c.EMAWeightAveraging(),
        c.WeightAveraging(),
        type("Own", (c.BaseFinetuning,), {})(),
    ]


@pytest.mark.parametrize("callback", made(), ids=lambda callback: type(callback).__name__)
def test_a_refused_callback_is_one_line(callback: pl.Callback):
    with pytest.raises(gl.GuardlitError, match=r"^trainer\.callbacks: \w+: ") as error:
        gl.Trainer(accelerator="cpu", callbacks=[callback])
    assert "\n" not in str(error.value)


def test_every_callback_that_may_be_refused_is_tried():
    tried = {kind.__name__ for callback in made() for kind in type(callback).__mro__}
    assert {name for name, entry in CALLBACKS.items() if entry.refused} <= tried


def test_other_callbacks_pass():
    check_callbacks(
        [callbacks.Timer(), callbacks.EarlyStopping("val/reward"), callbacks.ModelCheckpoint(), pl.Callback()]
    )


def test_a_misspelled_key_is_told_after_the_first_validation():
    logged = ["val/reward", "gold/average", "train/loss"]
    check_monitors([callbacks.EarlyStopping("val/reward"), callbacks.ModelCheckpoint(monitor="reward/x")], logged)
    for callback in (callbacks.EarlyStopping("val/rewrd"), callbacks.ModelCheckpoint(monitor="val/rewrd")):
        with pytest.raises(gl.GuardlitError, match=r"monitor=val/rewrd is not logged; did you mean val/reward\?"):
            check_monitors([callback], logged)
    distance = callbacks.EarlyStopping("kl/from_base")
    check_monitors([distance], [*logged, "kl/from_base", "kl/sqrt_from_base"])
    with pytest.raises(gl.GuardlitError, match=r"monitor=kl/from_base is not logged; logged are .*val/reward"):
        check_monitors([distance], logged)


# optimizers and schedules -----------------------------------------------------------------------------------------


def optimizer(name: str, **settings: Any) -> torch.optim.Optimizer:
    return getattr(torch.optim, name)([torch.nn.Parameter(torch.ones(3, 2))], lr=1e-2, **settings)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_works_or_is_refused(name: str):
    if not OPTIMIZERS[name].refused:
        made = optimizer(name)
        before = str(made.state_dict())
        check_optimizer(made)
        assert str(made.state_dict()) == before  # the trial is a separate one
        return
    with pytest.raises(gl.GuardlitError, match=rf"^model\.optimizer: {name}: "):
        check_optimizer(optimizer(name))


def test_a_setting_with_which_no_step_can_be_made_is_one_line():
    """AdamW's `eps` in Adafactor, whose own is a pair."""
    made = optimizer("Adafactor")
    made.param_groups[0]["eps"] = 1e-8
    with pytest.raises(gl.GuardlitError, match=r"^model\.optimizer: Adafactor cannot make a step with .*eps=1e-08"):
        check_optimizer(made)


def test_an_optimizer_of_ones_own_is_not_tried():
    """One of another package may need a GPU for its step, or to be switched to training first."""

    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            raise RuntimeError("needs a GPU")

    check_optimizer(Own([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    check_optimizer(type("LBFGS", (torch.optim.SGD,), {})([torch.nn.Parameter(torch.ones(2))], lr=0.1))
    with pytest.raises(gl.GuardlitError, match=r"^model\.optimizer: Own: it evaluates"):
        check_optimizer(type("Own", (torch.optim.LBFGS,), {})([torch.nn.Parameter(torch.ones(2))]))


def test_the_step_is_tried_on_the_device_of_the_parameters():
    """`capturable` is for a GPU; a tensor without storage stands for one."""
    with pytest.raises(gl.GuardlitError, match=r"^model\.optimizer: Adam cannot make a step with .*capturable"):
        check_optimizer(optimizer("Adam", capturable=True))
    check_optimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(2, device="meta"))], lr=0.1))


def test_a_plateau_is_refused_and_one_cycle_must_last():
    schedules = torch.optim.lr_scheduler
    with pytest.raises(gl.GuardlitError, match=r"^model\.lr_scheduler: ReduceLROnPlateau: it steps after"):
        check_scheduler(schedules.ReduceLROnPlateau(optimizer("SGD")), 4)
    one = schedules.OneCycleLR(optimizer("SGD"), max_lr=0.1, total_steps=8)
    check_scheduler(one, 8)
    with pytest.raises(gl.GuardlitError, match="OneCycleLR: total_steps=8 is less than the run's 9 updates"):
        check_scheduler(one, 9)
    with pytest.raises(gl.GuardlitError, match=r"^model\.lr_scheduler: Own: it steps after"):
        check_scheduler(type("Own", (schedules.ReduceLROnPlateau,), {})(optimizer("SGD")), 4)
    warm = type("Warm", (schedules.ConstantLR,), {"total_steps": 8})(optimizer("SGD"))
    check_scheduler(warm, 9)  # one of one's own may stay at its last value
