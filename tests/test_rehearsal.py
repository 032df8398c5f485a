"""Whole runs on the pretended GPU: nothing mixes devices, the numbers are the CPU's, and no loop waits needlessly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from families import FAMILIES
from runs import config, differing, guardlit, newest
from support.rehearsal import Rehearsal, rehearse

pytestmark = pytest.mark.timeout(400)

EVERY_UPDATE = {
    "class_path": "ModelCheckpoint",
    "init_args": {
        "filename": "update_{step}",
        "every_n_train_steps": 1,
        "save_top_k": -1,
        "auto_insert_metric_name": False,
    },
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
STEPS, UPDATES = 2, 2


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


def as_on_the_cpu(path: Path, checkpoints: Path, folder: Path) -> None:
    """The weights after the second update are those of the same run on the CPU, but for rounding."""
    on_cpu = ("--trainer.accelerator", "cpu", "--trainer.default_root_dir", folder)
    assert guardlit("fit", "--config", path, *on_cpu) == 0
    ours, theirs = (
        torch.load(newest(runs, "update_2.ckpt"), weights_only=True)["state_dict"] for runs in (checkpoints, folder)
    )
    assert ours.keys() == theirs.keys() != set()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6)


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
    as_on_the_cpu(path, checkpoints, tmp_path / "cpu")
    assert differing(checkpoints / "update_1.ckpt", checkpoints / "update_2.ckpt")
    assert rehearsal.record.calls["encoded on cuda"] > 0


FULL = {
    "model__policy__init_args__lora": None,
    "model__policy__init_args__reference": True,
    "model__kl": {"weight": 0.1},
    "model__old_velocity": "recomputed",
}
VARIANTS = {
    "full fine-tuning and KL": FULL,
    "16-mixed": {"trainer__precision": "16-mixed", "model__kl": {"weight": 0.1}},
    "bf16-mixed": {"trainer__precision": "bf16-mixed", "model__policy__init_args__weights_dtype": "bf16"},
}
PLAIN = {"trainer__callbacks": [{"class_path": "guardlit_callbacks.TrainableEMA"}, EVERY_UPDATE]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_goes_on_within_a_round(variant: str, sd3_folder: Path, tmp_path: Path):
    """Bit for bit; and where the CPU computes with the same precision, its weights are these."""
    path = run_of("sd3", tmp_path, sd3_folder, **PLAIN, **VARIANTS[variant])
    checkpoints, resumed = tmp_path / "runs/version_0/checkpoints", tmp_path / "resumed"
    again = ("--ckpt_path", checkpoints / "update_1.ckpt", "--trainer.default_root_dir", resumed)
    ended(rehearse(tmp_path, ("fit", "--config", path), ("fit", "--config", path, *again)), 2)
    assert differing(checkpoints / "update_2.ckpt", newest(resumed, "update_2.ckpt")) == []
    assert differing(checkpoints / "update_1.ckpt", checkpoints / "update_2.ckpt")
    if "mixed" not in variant:  # a CPU's autocast has other lists
        as_on_the_cpu(path, checkpoints, tmp_path / "cpu")


def test_a_network_scores_on_the_device(sd3_folder: Path, clip_folder: Path, tmp_path: Path):
    """A CLIP-like reward in training, and a whole `evaluate` with it as gold."""
    reward = {"class_path": "PickScore", "init_args": {"model": str(clip_folder)}}
    path = run_of("sd3", tmp_path, sd3_folder, **PLAIN, model__reward=reward)
    checkpoints = tmp_path / "runs/version_0/checkpoints"
    gold = tmp_path / "gold.yaml"
    scorers = {"pickscore": reward, "brightness": "brightness.Brightness"}
    gold.write_text(yaml.safe_dump({"gold": {"scorers": scorers, "average": ["brightness"]}}))
    evaluate = ("evaluate", "--config", path, "--config", gold, "--ckpt", checkpoints / "update_2.ckpt")
    ended(rehearse(tmp_path, ("fit", "--config", path), (*evaluate, "--out", tmp_path / "evaluation")), 2)
    as_on_the_cpu(path, checkpoints, tmp_path / "cpu")
    assert (tmp_path / "evaluation/table.json").exists()


ONCE_A_BATCH = {"guardlit/rollout.py _check_velocities"}
"""Who may wait once for each batch of images that is drawn; nobody waits in each step or each micro-batch."""


def test_the_loops_wait_for_nothing(sd3_folder: Path, tmp_path: Path):
    """Every line that waits is recorded; what is read once a run or a round stays below the loops' counts."""
    small = {"data__images_per_prompt": 4, "data__micro_batch": 1, "data__rollout_batch": 1, "data__val_limit": 1}
    steps = {"model__rollout": {"num_inference_steps": 5, "guidance_scale": 3.5}}
    path = run_of("sd3", tmp_path, sd3_folder, **small, **steps, data__updates_per_round=2)
    rehearsal = rehearse(tmp_path, ("fit", "--config", path))
    ended(rehearsal, 1)
    record = rehearsal.record
    assert record.calls["denoising"] == 5 * 8
    assert record.calls["micro-batch"] == 8 * 4
    in_steps, in_micro_batches = record.of("denoising"), record.of("micro-batch")
    batches = record.calls["denoising"] // 5
    table = "\n".join(f"{loop}:\n{record.table(loop)}" for loop in ("denoising", "micro-batch", "update"))
    assert {who for who, n in in_steps.items() if n >= batches} <= ONCE_A_BATCH, table
    assert all(n <= batches + 1 for who, n in in_steps.items() if who in ONCE_A_BATCH), table  # and the validations
    assert {who for who, n in in_micro_batches.items() if n >= record.calls["micro-batch"]} == set(), table
    print(table)
    print(record.calls)


def test_prompts_of_a_sample_are_encoded_on_the_device(sd3_folder: Path, tmp_path: Path):
    path = run_of("sd3", tmp_path, sd3_folder, **PLAIN)
    rehearsal = rehearse(tmp_path, ("sample", "--config", path, "--n", 1, "--out", tmp_path / "images"))
    ended(rehearsal, 1)
    assert rehearsal.record.calls["encoded on cuda"] > 0
    assert rehearsal.record.calls["encoded on cpu"] == 0
