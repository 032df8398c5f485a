"""A user's mistake gets one clear line that names the place; nothing is drawn, nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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


def _copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


# prompts -------------------------------------------------------------------------------------------------------------

PROMPT_FILES = {
    "missing.txt": (None, "no prompt file"),
    "empty.txt": ("", "it is empty; at least one prompt is needed"),
    "blank.txt": ("a cat\n\na dog\n", ":2"),
    "long.txt": ("a cat\n" + "very " * 900 + "long\n", ":2"),
    "bad.jsonl": ('{"prompt": "a cat"}\n{"prompt": \n', ":2"),
    "keyless.jsonl": ('{"text": "a cat"}\n', "text"),
}


@pytest.mark.parametrize("name", PROMPT_FILES)
def test_a_bad_prompt_file_is_named_with_its_line(run, name: str, tmp_path: Path, capsys):
    text, expected = PROMPT_FILES[name]
    if text is not None:
        (tmp_path / name).write_text(text)
    line = complaint(capsys, "fit", "--config", run(), "--data.train", tmp_path / name)
    assert name in line
    assert expected in line


# models --------------------------------------------------------------------------------------------------------------


def _other_pipeline(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))


def _truncate(folder: Path) -> None:
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _drop_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop("proj_out.weight")
    save_file(tensors, path)


def _drop_text_encoder_weights(folder: Path) -> None:
    (folder / "text_encoder_2/model.safetensors").unlink()


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "has no model_index.json"),
    "broken index": (lambda f: (f / "model_index.json").write_text("{"), "model_index.json is not JSON"),
    "another pipeline": (_other_pipeline, "holds a FluxPipeline; StableDiffusion3Pipeline is needed"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "lacks the component 'vae'"),
    "no transformer": (lambda f: shutil.rmtree(f / "transformer"), "lacks the component 'transformer'"),
    "truncated weights": (_truncate, "transformer cannot be loaded as SD3Transformer2DModel"),
    "a missing weight": (_drop_a_weight, "first 'proj_out.weight'"),
    "no text encoder weights": (_drop_text_encoder_weights, "text encoders cannot be loaded"),
}


@pytest.mark.parametrize("fault", MODELS)
def test_a_bad_model_folder_is_named(run, fault: str, sd3_folder: Path, tmp_path: Path, capsys):
    spoil, expected = MODELS[fault]
    folder = _copy(sd3_folder, tmp_path / "model")
    spoil(folder)
    line = complaint(capsys, "fit", "--config", run(), "--model.policy.model", folder)
    assert str(folder) in line
    assert expected in line


def test_a_model_that_is_neither_folder_nor_hub_id(run, capsys):
    assert "'./nowhere' does not exist" in complaint(
        capsys, "fit", "--config", run(), "--model.policy.model", "./nowhere"
    )
    line = complaint(capsys, "fit", "--config", run(), "--model.policy.model", "owner/absent")
    assert "'owner/absent' is no folder here, is not in the hub cache" in line


def test_a_pickscore_folder_without_its_weights(run, clip_folder: Path, tmp_path: Path, capsys):
    folder = _copy(clip_folder, tmp_path / "pickscore")
    for weights in (*folder.glob("*.safetensors"), *folder.glob("*.bin")):
        weights.unlink()
    reward = {"class_path": "PickScore", "init_args": {"model": str(folder)}}
    line = complaint(capsys, "fit", "--config", run(model__reward=reward))
    assert str(folder) in line


# numbers -------------------------------------------------------------------------------------------------------------

OPTIONS = {
    ("--data.updates_per_round", "3"): "updates_per_round = 3 is not divisible by inner_epochs = 2",
    (
        "--data.prompts_per_round",
        "3",
        "--data.images_per_prompt",
        "3",
    ): "= 9 is not divisible by updates per inner epoch = 2",
    ("--data.micro_batch", "5"): "(4 images x 4 trained steps) = 16 is not divisible by micro_batch = 5; it is by",
    ("--data.images_per_prompt", "1"): "a group, which needs at least 2 images",
    ("--data.micro_batch", "0"): "micro_batch=0 must be at least 1",
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
    ("--ckpt_path", "nowhere.ckpt"): "checkpoint nowhere.ckpt does not exist",
    ("--ckpt_path", "last"): "--ckpt_path last: no checkpoint under",
    ("--model.rewrd", "PickScore"): "unknown option --model.rewrd; did you mean --model.reward",
    ("--model.reward", "PikScore"): "did you mean PickScore",
}


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_numbers_that_cannot_be(run, options: tuple[str, ...], capsys):
    assert OPTIONS[options] in complaint(capsys, "fit", "--config", run(), *options)


def test_an_output_folder_that_cannot_be_written(run, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("")
    line = complaint(capsys, "fit", "--config", run(), "--trainer.default_root_dir", tmp_path / "file/runs")
    assert f"output folder {tmp_path / 'file/runs'} cannot be written" in line


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


def test_a_checkpoint_that_is_damaged_or_none(trained, tmp_path: Path, capsys):
    path, checkpoint = trained
    whole = checkpoint.read_bytes()
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, foreign)
    files = {
        tmp_path / "half.ckpt": (whole[: len(whole) // 2], "cannot be read, truncated or damaged?"),
        tmp_path / "text.ckpt": (b"hello", "cannot be read, truncated or damaged?"),
        foreign: (foreign.read_bytes(), "not written by guardlit"),
    }
    for file, (content, expected) in files.items():
        file.write_bytes(content)
        for command in ("fit", "validate", "export"):
            line = complaint(capsys, command, "--config", path, "--ckpt_path", file)
            assert expected in line


def test_a_pickled_checkpoint_executes_nothing(trained, tmp_path: Path, capsys):
    path, _ = trained
    marker = tmp_path / "executed"
    evil = tmp_path / "evil.ckpt"
    torch.save({"state_dict": _Touch(marker)}, evil)
    assert "cannot be read" in complaint(capsys, "fit", "--config", path, "--ckpt_path", evil)
    assert not marker.exists()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_export_without_a_checkpoint(trained, capsys):
    assert "export needs --ckpt_path" in complaint(capsys, "export", "--config", trained[0])
