"""What the tables say works: whole runs, compared with one that has none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import config, differing, guardlit, newest

import guardlit as gl
from guardlit.training.limits.optimizers import OPTIMIZERS

SCHEDULES = "torch.optim.lr_scheduler."


def named(name: str, **settings: Any) -> dict[str, Any]:
    """A class in YAML."""
    return {"class_path": name, "init_args": settings} if settings else {"class_path": name}


EMA = named("guardlit_callbacks.TrainableEMA")

ARGUMENTS = {
    "accelerator": "auto",
    "reload_dataloaders_every_n_epochs": 1,
    "limit_val_batches": 1,
    "num_sanity_val_steps": 1,
    "log_every_n_steps": 2,
    "enable_model_summary": True,
    "enable_autolog_hparams": False,
    "detect_anomaly": True,
    "min_epochs": 1,
    "min_steps": 1,
    "max_time": "00:01:00:00",
    "benchmark": True,
    "deterministic": "warn",
    "inference_mode": True,
    "profiler": "simple",
    "gradient_clip_algorithm": "norm",
    "limit_train_batches": 1.0,
}
"""That change nothing of what is trained."""

CALLBACKS = [
    named("DeviceStatsMonitor", cpu_stats=True),
    named("LearningRateMonitor", logging_interval="step"),
    named("ModelSummary"),
    named("RichModelSummary"),
    named("TQDMProgressBar"),
    named("Timer", duration="00:01:00:00"),
    named("EarlyStopping", monitor="val/reward", mode="max", patience=99),
    named("ThroughputMonitor", batch_size_fn="builtins.len"),
    named("LambdaCallback"),
    named("ModelCheckpoint", filename="best", monitor="val/reward", mode="max"),
]
"""The same of callbacks."""


def run(folder: Path, model: Path, **more: Any) -> Path:
    """The YAML of two rounds of 2 updates, each of 2 micro-batches."""
    rollout = {"num_inference_steps": 3, "guidance_scale": 1.0}
    settings = {"data__updates_per_round": 2, "data__inner_epochs": 1, "trainer__max_epochs": 2}
    base = {"trainer__check_val_every_n_epoch": 1, "data__rollout_batch": 8, "model__rollout": rollout}
    return config(folder, model, **(settings | base | more))


@pytest.fixture(scope="module")
def plain(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of the run without anything."""
    folder = tmp_path_factory.mktemp("plain")
    assert guardlit("fit", "--config", run(folder, sd3_folder)) == 0
    return newest(folder)


def test_arguments_that_change_no_number(plain: Path, sd3_folder: Path, tmp_path: Path):
    settings = {f"trainer__{name}": value for name, value in ARGUMENTS.items()}
    assert guardlit("fit", "--config", run(tmp_path, sd3_folder, **settings)) == 0
    assert differing(plain, newest(tmp_path, "round_*.ckpt"), ["state_dict", "optimizer_states"]) == []


def test_callbacks_that_change_no_number(plain: Path, sd3_folder: Path, tmp_path: Path):
    assert guardlit("fit", "--config", run(tmp_path, sd3_folder, trainer__callbacks=[EMA, *CALLBACKS])) == 0
    assert differing(plain, newest(tmp_path, "round_*.ckpt"), ["state_dict", "optimizer_states"]) == []
    assert newest(tmp_path, "best*.ckpt")


def test_clipping_by_value_is_another_run(plain: Path, sd3_folder: Path, tmp_path: Path):
    clip = {"trainer__gradient_clip_algorithm": "value", "trainer__gradient_clip_val": 1e-9}
    path = run(tmp_path, sd3_folder, model__optimizer=named("torch.optim.SGD", lr=1.0), trainer__max_epochs=1, **clip)
    assert guardlit("fit", "--config", path) == 0
    state = torch.load(newest(tmp_path), weights_only=True)["state_dict"]
    moved = [value.abs().max() for name, value in state.items() if "lora_B" in name]  # zeros before, two updates
    assert max(moved) <= 2.001e-9
    assert max(moved) > 0


def test_early_stopping_on_a_misspelled_key_is_one_line(sd3_folder: Path, tmp_path: Path, capfd):
    callbacks = [named("EarlyStopping", monitor="val/rewrd")]
    assert guardlit("fit", "--config", run(tmp_path, sd3_folder, trainer__callbacks=callbacks)) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "monitor=val/rewrd is not logged; did you mean val/reward?" in last
    callbacks = [named("EarlyStopping", monitor="reward/x", check_on_train_epoch_end=True)]
    assert guardlit("fit", "--config", run(tmp_path, sd3_folder, trainer__callbacks=callbacks)) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "error: trainer.callbacks: Early stopping conditioned on metric `reward/x`" in last


def test_a_fit_needs_its_data_and_a_module_its_settings(tmp_path: Path):
    trainer = gl.Trainer(accelerator="cpu", default_root_dir=tmp_path)
    with pytest.raises(gl.GuardlitError, match=r"fit needs datamodule=guardlit\.PromptDataModule"):
        trainer.fit(None)
    with pytest.raises(gl.GuardlitError, match=r"GRPOModule\.load_from_checkpoint: a checkpoint holds what trains"):
        gl.GRPOModule.load_from_checkpoint("a.ckpt")


# resumed within a round -------------------------------------------------------------------------------------------


def resumes(folder: Path, model: Path, **settings: Any) -> None:
    """Compare a run that is stopped within its second round, and resumed, with the undisturbed one."""
    path = run(folder, model, **settings)
    assert guardlit("fit", "--config", path) == 0
    assert guardlit("fit", "--config", path, "--trainer.max_steps", 3) == 0
    saved = newest(folder, "interrupted.ckpt")
    assert guardlit("fit", "--config", path, "--ckpt_path", saved) == 0
    runs = [newest(folder / f"runs/version_{k}", "round_00002.ckpt") for k in (0, 2)]
    assert differing(*runs) == []
    schedules = [torch.load(path, weights_only=True)["lr_schedulers"] for path in runs]
    assert schedules[0] == schedules[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, entry in OPTIMIZERS.items() if not entry.refused])
def test_each_optimizer_trains_and_resumes(name: str, sd3_folder: Path, tmp_path: Path):
    resumes(tmp_path, sd3_folder, model__optimizer=named(f"torch.optim.{name}", lr=1e-3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule",
    [
        named(f"{SCHEDULES}StepLR", step_size=1),
        named(f"{SCHEDULES}MultiStepLR", milestones=[1, 3]),
        named(f"{SCHEDULES}ConstantLR"),
        named(f"{SCHEDULES}LinearLR"),
        named(f"{SCHEDULES}ExponentialLR", gamma=0.9),
        named(f"{SCHEDULES}CosineAnnealingLR", T_max=4),
        named(f"{SCHEDULES}CyclicLR", base_lr=1e-4, max_lr=1e-3),
        named(f"{SCHEDULES}CosineAnnealingWarmRestarts", T_0=2),
        named(f"{SCHEDULES}OneCycleLR", max_lr=1e-3, total_steps=4),
        named(f"{SCHEDULES}PolynomialLR"),
    ],
    ids=lambda schedule: schedule["class_path"].removeprefix(SCHEDULES),
)
def test_each_schedule_trains_and_resumes(schedule: dict[str, Any], sd3_folder: Path, tmp_path: Path):
    resumes(tmp_path, sd3_folder, model__lr_scheduler=schedule)


@pytest.mark.slow
@pytest.mark.parametrize("profiler", ["advanced", "pytorch"])
def test_each_profiler_changes_no_number(profiler: str, plain: Path, sd3_folder: Path, tmp_path: Path):
    assert guardlit("fit", "--config", run(tmp_path, sd3_folder, trainer__profiler=profiler)) == 0
    assert differing(plain, newest(tmp_path, "round_*.ckpt"), ["state_dict", "optimizer_states"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CSVLogger", "TensorBoardLogger", "WandbLogger"])
def test_each_logger_trains(name: str, plain: Path, sd3_folder: Path, tmp_path: Path):
    offline = {}
    if name == "WandbLogger":
        pytest.importorskip("wandb")
        offline = {"offline": True}
    logger = named(name, save_dir=str(tmp_path / "logs"), **offline)
    assert guardlit("fit", "--config", run(tmp_path, sd3_folder, trainer__logger=logger)) == 0
    assert differing(plain, newest(tmp_path, "round_*.ckpt"), ["state_dict", "optimizer_states"]) == []
