"""Whole runs on the pretended GPU: nothing mixes devices, the numbers are the CPU's, and no loop waits needlessly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from runs import config, differing, guardlit, newest
from support.rehearsal import Rehearsal, rehearse

pytestmark = pytest.mark.timeout(400)

EVERY_UPDATE = {
    "class_path": "ModelCheckpoint",
    "init_args": {"filename": "update_{step}", "every_n_train_steps": 1, "save_top_k": -1, "auto_insert_metric_name": False},
}
ALL = [
    {"class_path": "guardlit_callbacks.TrainableEMA"},
    {"class_path": "guardlit_callbacks.SampleGrid"},
    {
        "class_path": "guardlit_callbacks.RatioDistribution",
        "init_args": {"raw": "raw_log_ratio", "normalized": "norm_log_ratio", "sample_weight": "sample_weight"},
    },
    {
        "class_path": "guardlit_callbacks.GradientNorm",
        "init_args": {"sample_weight": "sample_weight", "parameters_every": 1},
    },
    {"class_path": "guardlit_callbacks.GradientSpikes"},
    {
        "class_path": "guardlit_callbacks.GoldScore",
        "init_args": {"scorers": ["brightness.Brightness"]},
    },
    {"class_path": "guardlit_callbacks.OverOptimizationStop", "init_args": {"action": "warn"}},
    {"class_path": "guardlit_callbacks.DriftSentinels"},
    {"class_path": "guardlit_callbacks.PhaseTimer"},
    {"class_path": "guardlit.export.ExportAtEnd"},
    {"class_path": "support.counting.Counts"},
    EVERY_UPDATE,
]
STEPS, BATCHES, UPDATES, MICRO_BATCHES = 2, 2, 2, 4


def run_of(name: str, folder: Path, model: Path, **changes: object) -> Path:
    """The YAML of one round of 2 updates with 2 micro-batches each, then a validation, with all callbacks."""
    family = FAMILIES[name]
    settings = {
        "model__policy__class_path": family.policy.__name__,
        "model__policy__init_args__max_sequence_length": family.length,
        "model__reward": "brightness.Brightness",
        "model__rollout": {"num_inference_steps": STEPS + 1, "guidance_scale": 3.5},
        "model__evaluation": {"num_inference_steps": 2, "guidance_scale": 3.5},
        "data__images_per_prompt": 2,
        "data__updates_per_round": UPDATES,
        "data__inner_epochs": 1,
        "data__micro_batch": 2,
        "trainer__max_epochs": 1,
        "trainer__accelerator": "cuda",
        "trainer__callbacks": ALL,
    }
    folder.mkdir(exist_ok=True)
    return config(folder, model, **settings | changes)


def ended(rehearsal: Rehearsal, commands: int) -> None:
    """All commands ended well."""
    assert rehearsal.codes == [0] * commands, rehearsal.log[-4000:]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str, tiny: Callable[[str], Path], tmp_path: Path):
    """A round, a resume within it, a validation and a sample; the round's weights are those of the CPU."""
    path = run_of(name, tmp_path, tiny(name))
    checkpoints = tmp_path / "runs/version_0/checkpoints"
    with_checkpoint = ("--config", path, "--ckpt_path", checkpoints / "update_2.ckpt")
    resumed = tmp_path / "resumed"
    rehearsal = rehearse(
        tmp_path,
        ("fit", "--config", path),
        ("fit", "--config", path, "--ckpt_path", checkpoints / "update_1.ckpt", "--trainer.default_root_dir", resumed),
        ("validate", *with_checkpoint),
        ("sample", *with_checkpoint, "--n", 1, "--out", tmp_path / "images"),
    )
    ended(rehearsal, 4)
    assert differing(checkpoints / "update_2.ckpt", newest(resumed, "update_2.ckpt")) == []
    cpu = tmp_path / "cpu"
    assert guardlit("fit", "--config", path, "--trainer.accelerator", "cpu", "--trainer.default_root_dir", cpu) == 0
    ours, theirs = (torch.load(newest(f, "update_2.ckpt"), weights_only=True)["state_dict"] for f in (checkpoints, cpu))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6)
    assert differing(checkpoints / "update_1.ckpt", checkpoints / "update_2.ckpt")
    assert rehearsal.record.calls["encoded on cuda"] > 0
    print(rehearsal.record.calls)
    for loop in ("denoising", "micro-batch", "round", "update", "validation"):
        print(loop)
        print(rehearsal.record.table(loop))
