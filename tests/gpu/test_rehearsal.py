"""Complete runs on the simulated GPU: devices never mix, numbers are the CPU's, no loop synchronizes needlessly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import yaml
from families import FAMILIES
from image_folders import write_images
from rehearsal import Rehearsal, rehearse
from runs import EVERY_UPDATE, config, differing, guardlit, newest

pytestmark = pytest.mark.timeout(400)

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
    {"class_path": "guardlit_callbacks.KLFromBase"},
    {"class_path": "guardlit_callbacks.PhaseTimer"},
    {"class_path": "guardlit.training.export.ExportAtEnd"},
    {"class_path": "counting.Counts"},
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
        "trainer__deterministic": True,  # the device then refuses what CUDA would
        "trainer__callbacks": ALL,
    }
    folder.mkdir(exist_ok=True)
    return config(folder, model, **settings | changes)


def completed(rehearsal: Rehearsal, commands: int) -> None:
    """All commands exited with 0."""
    assert rehearsal.codes == [0] * commands, rehearsal.log[-4000:]


def as_on_the_cpu(path: Path, checkpoints: Path, folder: Path) -> None:
    """The weights after the second update are those of the same run on the CPU, up to rounding."""
    on_cpu = ("--trainer.accelerator", "cpu", "--trainer.default_root_dir", folder)
    assert guardlit("fit", "--config", path, *on_cpu) == 0
    ours, theirs = (
        torch.load(newest(runs, "update_2.ckpt"), weights_only=True)["state_dict"] for runs in (checkpoints, folder)
    )
    assert ours.keys() == theirs.keys() != set()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=1e-6)


SLOW = (
    "flux",
    "qwen_image",
    "flux2_klein",
    "full fine-tuning and KL",
    "bf16-mixed",
    "stored",
    "on the host where possible",
)
"""Rehearsed by `pytest -m slow`: the paths of the device are those of the others."""


def rehearsed(names: Iterable[str]) -> list[object]:
    """Parameters, those of `SLOW` for the run of `pytest -m slow` alone."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in names]


@pytest.mark.parametrize("name", rehearsed(FAMILIES))
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
    completed(rehearsal, 4)
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
    "on the host where possible": {
        "model__policy__init_args__vae_device": "cpu",
        "model__policy__init_args__encode_alone": True,
        "model__policy__init_args__decode_dtype": "fp16",
        "model__policy__init_args__text_encoders": "host",
        "model__rollout__trajectories": "host",
        "model__rollout__merge": True,
        "model__old_velocity": "auto",
    },
}
PLAIN = {"trainer__callbacks": [{"class_path": "guardlit_callbacks.TrainableEMA"}, EVERY_UPDATE]}


@pytest.mark.parametrize("variant", rehearsed(VARIANTS))
def test_a_variant_resumes_within_a_round(variant: str, sd3_folder: Path, tmp_path: Path):
    """Bit for bit; at the CPU's precision the weights are also the CPU's."""
    path = run_of("sd3", tmp_path, sd3_folder, **PLAIN, **VARIANTS[variant])
    checkpoints, resumed = tmp_path / "runs/version_0/checkpoints", tmp_path / "resumed"
    again = ("--ckpt_path", checkpoints / "update_1.ckpt", "--trainer.default_root_dir", resumed)
    completed(rehearse(tmp_path, ("fit", "--config", path), ("fit", "--config", path, *again)), 2)
    assert differing(checkpoints / "update_2.ckpt", newest(resumed, "update_2.ckpt")) == []
    assert differing(checkpoints / "update_1.ckpt", checkpoints / "update_2.ckpt")
    if "mixed" not in variant:  # a CPU's autocast has other lists
        as_on_the_cpu(path, checkpoints, tmp_path / "cpu")


def test_a_network_scores_on_the_device(sd3_folder: Path, clip_folder: Path, tmp_path: Path):
    """A CLIP-like reward in training, and `evaluate` with it as gold."""
    reward = {"class_path": "PickScore", "init_args": {"model": str(clip_folder)}}
    path = run_of("sd3", tmp_path, sd3_folder, **PLAIN, model__reward=reward)
    checkpoints = tmp_path / "runs/version_0/checkpoints"
    gold = tmp_path / "gold.yaml"
    scorers = {"pickscore": reward, "brightness": "brightness.Brightness"}
    gold.write_text(yaml.safe_dump({"gold": {"scorers": scorers, "average": ["brightness"]}}))
    evaluate = ("evaluate", "--config", path, "--config", gold, "--ckpt", checkpoints / "update_2.ckpt")
    completed(rehearse(tmp_path, ("fit", "--config", path), (*evaluate, "--out", tmp_path / "evaluation")), 2)
    as_on_the_cpu(path, checkpoints, tmp_path / "cpu")
    assert (tmp_path / "evaluation/table.json").exists()


PER_BATCH = {
    "rounds/rollout.py _check_velocities": 1,
    "guardlit/types.py from_values": 1,  # the rewards
}
"""Allowed synchronizations of a line per sampled and scored batch; other lines wait less than once per batch."""
PER_UPDATE = {
    "recovery/nonfinite.py allows": 1,
    "tools/requirements.py loss_scale": 1,
    "guardlit_callbacks/gradient_spikes.py on_train_batch_end": 1,
    "core/module.py __to_tensor": 3,  # Lightning, for every logged Python number
    "precision/amp.py optimizer_step": 2,  # the loss scaler's result
}
"""Allowed synchronizations of a line per update."""
ONCE = {
    "utilities/apply_func.py batch_to",  # Lightning, when a metric is first logged
    "rounds/noise_floor.py sizes_by_step",
    "rounds/noise_floor.py <dictcomp>",
    "data_loss/term.py _measure",  # after a round's last micro-batch
}
LOOPS: dict[str, dict[str, object]] = {
    "stored": {"model__old_velocity": "stored"},
    "recomputed in halves, with KL": {
        "trainer__precision": "16-mixed",
        "model__old_velocity": "recomputed",
        "model__kl": {"weight": 0.1},
    },
    "on images too": {"model__data_loss": {"weight": 0.1}},
}


@pytest.mark.parametrize("loop", rehearsed(LOOPS))
def test_the_loops_do_not_synchronize(loop: str, sd3_folder: Path, tmp_path: Path):
    """No line synchronizes in each denoising step or micro-batch; those that do per batch or update are listed."""
    small = {"data__images_per_prompt": 4, "data__micro_batch": 1, "data__rollout_batch": 1, "data__val": None}
    steps = {"model__rollout": {"num_inference_steps": 5, "guidance_scale": 3.5}}
    images = {"model.data_loss.images": write_images(tmp_path / "images")} if "images" in loop else {}
    path = run_of("sd3", tmp_path, sd3_folder, **small, **steps, **LOOPS[loop])
    rehearsal = rehearse(tmp_path, ("fit", "--config", path, *(f"--{key}={value}" for key, value in images.items())))
    completed(rehearsal, 1)
    record = rehearsal.record
    batches = 8
    assert record.calls["denoising"] == 5 * batches
    assert record.calls["micro-batch"] == 4 * batches
    table = "\n".join(f"{part}:\n{record.table(part)}" for part in ("denoising", "round", "micro-batch", "update"))
    waits = record.of("denoising") + record.of("round")
    assert {line: n for line, n in waits.items() if n >= batches and n > batches * PER_BATCH.get(line, 0)} == {}, table
    often = record.calls["micro-batch"]
    assert {line: n for line, n in record.of("micro-batch").items() if n >= often} == {}, table
    waits = {line: n for line, n in (record.of("micro-batch") + record.of("update")).items() if line not in ONCE}
    assert {line: n for line, n in waits.items() if n > UPDATES * PER_UPDATE.get(line, 0)} == {}, table


def test_prompts_of_a_sample_are_encoded_on_the_device(sd3_folder: Path, tmp_path: Path):
    path = run_of("sd3", tmp_path, sd3_folder, **PLAIN)
    rehearsal = rehearse(tmp_path, ("sample", "--config", path, "--n", 1, "--out", tmp_path / "images"))
    completed(rehearsal, 1)
    assert rehearsal.record.calls["encoded on cuda"] > 0
    assert rehearsal.record.calls["encoded on cpu"] == 0
