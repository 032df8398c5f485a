"""Settings that do not fit each other, and checkpoints that do not fit the run: one line, nothing is drawn or lost.

`malformed/` has what is wrong by itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import config, guardlit, newest


@pytest.fixture
def run(sd3_folder: Path, tmp_path: Path):
    """Writes a run's YAML with changes."""
    return lambda **changes: config(tmp_path, sd3_folder, **changes)


def complaint(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    """The one line that a failing command leaves on stderr."""
    capsys.readouterr()
    assert guardlit(*args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("guardlit ")]
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


# numbers -------------------------------------------------------------------------------------------------------------

OPTIONS = {
    ("--data.updates_per_round", "3"): "updates_per_round = 3 is not divisible by inner_epochs = 2",
    (
        "--data.prompts_per_round",
        "3",
        "--data.images_per_prompt",
        "3",
    ): "= 9 is not divisible by updates per inner epoch = 2",
    (
        "--data.micro_batch=5",
        "--data.exact_micro_batch=true",
    ): "(4 images x 4 trained steps) = 16 is not divisible by micro_batch = 5; it is by",
    ("--data.micro_batch=auto", "--data.exact_micro_batch=true"): "needs a number as data.micro_batch; found auto",
    ("--data.updates_per_round", "1", "--data.inner_epochs", "1"): "makes every update on-policy, where the ratio is 1",
    (
        "--model.objective.clip_range=auto",
        "--data.updates_per_round=1",
        "--data.inner_epochs=1",
    ): "makes every update on-policy, where the ratio is 1",
    (
        "--model.policy.lora",
        "null",
        "--model.kl.weight",
        "0.1",
    ): "keeps no copy of it: set policy.reference: true",
    ("--model.objective.clip_range", "0.2"): "RatioNorm's published ones are 0.13 to 0.26",
    ("--model.objective.clip_range=-1e-6",): "clip_range=-1e-06 must be positive",
    ("--model.rollout.guidance_scale", "0.5"): "guidance_scale=0.5 must be at least 1",
    ("--model.rollout.timestep_fraction", "0.1"): "trains 0; it must lie in (0, 1]",
    ("--model.sde", "ODE"): "ODE draws no noise at trained steps",
    ("--model.kl.weight", "0"): "kl.weight=0.0 must be positive",
    ("--model.policy.resolution", "36"): "resolution=36 must be a multiple of 16",
    ("--model.policy.resolution", "2048"): "has positions for 32: at most 512 pixels",
    ("--model.policy.lora.targets", "[attn.to_x]"): "LoRA target 'attn.to_x' names no linear layer",
    ("--trainer.accumulate_grad_batches", "3"): "leave it out, it follows from data.updates_per_round",
    ("--model.reward", "PikScore"): "did you mean PickScore",
}


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_numbers_that_cannot_be(run, options: tuple[str, ...], capsys):
    assert OPTIONS[options] in complaint(capsys, "fit", "--config", run(), *options)


def test_a_preset_before_the_run_that_it_changes(run, capsys):
    preset = Path(__file__).parents[2] / "configs/gpu/24gb.yaml"
    line = complaint(capsys, "fit", "--config", preset, "--config", run())
    (number,) = (i for i, text in enumerate(preset.read_text().splitlines(), 1) if "weights_dtype:" in text)
    why = "weights_dtype is set before a FlowPolicy is chosen: what has its class_path goes first"
    assert f"{preset}:{number}: model.policy: {why}" in line


# checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run of one round: its YAML and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    path = config(folder, sd3_folder, trainer__max_epochs=1)
    assert guardlit("fit", "--config", path) == 0
    return path, newest(folder)


def test_a_checkpoint_of_another_configuration(trained, tmp_path: Path, capsys):
    path, checkpoint = trained
    resume = ("fit", "--config", path, "--ckpt_path", checkpoint, "--trainer.default_root_dir", tmp_path)
    line = complaint(capsys, *resume, "--data.prompts_per_round", 4)
    assert "saved with data.prompts_per_round = 2; this run has 4" in line
    line = complaint(capsys, *resume, "--model.policy.lora.rank", 8)
    assert "saved with lora = LoRA(rank=4" in line
    line = complaint(capsys, *resume, "--seed_everything", 7)
    assert "saved with data.seed = 42; this run has 7" in line


def test_a_checkpoint_that_is_corrupt_or_of_something_else(trained, tmp_path: Path, capsys):
    path, checkpoint = trained
    whole = checkpoint.read_bytes()
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, foreign)
    files = {
        tmp_path / "half.ckpt": (whole[: len(whole) // 2], "is corrupt ("),
        tmp_path / "text.ckpt": (b"hello", "is corrupt ("),
        foreign: (foreign.read_bytes(), "not written by guardlit"),
    }
    for file, (content, expected) in files.items():
        file.write_bytes(content)
        for command in ("fit", "validate", "export"):
            line = complaint(capsys, command, "--config", path, "--ckpt_path", file)
            assert expected in line
