"""A run of each family through the command line: fit, validate, sample, export and resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from runs import EVERY_UPDATE, config, differing, guardlit, newest
from watching import seen_outputs

OTHERS = [name for name in FAMILIES if name != "sd3"]  # whose runs are test_module.py's


def run_of(name: str, folder: Path, model: Path, **changes: object) -> Path:
    """The YAML of two rounds."""
    family = FAMILIES[name]
    return config(
        folder,
        model,
        model__policy__class_path=family.policy.__name__,
        model__policy__init_args__max_sequence_length=family.length,
        model__rollout={"num_inference_steps": 5, "guidance_scale": 3.5},
        model__evaluation={"num_inference_steps": 2, "guidance_scale": 3.5},
        trainer__max_epochs=2,
        trainer__callbacks=[{"class_path": "guardlit_callbacks.TrainableEMA"}, EVERY_UPDATE],
        **changes,
    )


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_validates_samples_and_exports(name: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch):
    outputs = seen_outputs(monkeypatch)
    path = run_of(name, tmp_path, tiny(name))
    assert guardlit("fit", "--config", path) == 0
    for first in (0, 16):  # two rounds of 4 updates with 4 micro-batches each: on-policy in a round's first update
        assert not any(bool(o["log_ratio"].any()) for o in outputs[first : first + 4])
        assert all(bool(o["log_ratio"].any()) for o in outputs[first + 4 : first + 16])
    last = newest(tmp_path, "update_8.ckpt")
    with_checkpoint = ("--config", path, "--ckpt_path", last)
    assert guardlit("validate", *with_checkpoint) == 0
    assert guardlit("sample", *with_checkpoint, "--out", tmp_path / "images", "--n", 1) == 0
    assert len(list((tmp_path / "images").rglob("grid.png"))) == 1
    assert guardlit("export", *with_checkpoint, "--out", tmp_path / "export") == 0
    pipe = FAMILIES[name].pipeline(tiny(name))
    pipe.load_lora_weights(tmp_path / "export/raw")
    loaded = {k: v for k, v in pipe.transformer.state_dict().items() if ".lora_" in k}
    saved = torch.load(last, weights_only=True)["state_dict"]
    assert len(loaded) == len(saved) == 2 * FAMILIES[name].lora_layers
    for key, value in loaded.items():
        scale = 2 if "lora_B" in key else 1  # alpha / rank is in the exported B
        assert torch.equal(value, scale * saved["policy.transformer." + key.replace(".default_0.", ".default.")])


STOPS = ["update_2", "update_4"]  # within a round, and at its end
RESUMED = {
    "flux": ("flux", {"rank": 4, "alpha": 8.0}, STOPS),
    "flux in full": ("flux", None, STOPS[:1]),
    "prompts of any length": ("qwen_image", {"rank": 4, "alpha": 8.0}, STOPS[:1]),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_equals_the_uninterrupted_one(case: str, tiny: Callable[[str], Path], tmp_path: Path):
    name, lora, stops = RESUMED[case]
    path = run_of(name, tmp_path, tiny(name), model__policy__init_args__lora=lora)
    assert guardlit("fit", "--config", path) == 0
    checkpoints = tmp_path / "runs/version_0/checkpoints"
    for stop in stops:
        runs = tmp_path / stop
        resume = ("--ckpt_path", checkpoints / f"{stop}.ckpt", "--trainer.default_root_dir", runs)
        assert guardlit("fit", "--config", path, *resume) == 0
        assert differing(checkpoints / "update_8.ckpt", newest(runs, "update_8.ckpt")) == []
    assert differing(checkpoints / "update_7.ckpt", checkpoints / "update_8.ckpt")


def test_unsupported_guidance_is_one_line(tmp_path: Path, capsys):
    from tiny_folders import make_flux

    model = make_flux(tmp_path / "schnell", guidance_embeds=False)
    path = run_of("flux", tmp_path, model)
    capsys.readouterr()
    assert guardlit("fit", "--config", path) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("guardlit ")]
    assert len(lines) == 1
    assert "guidance_scale=3.5" in lines[0]
    assert "model.rollout.guidance_scale" in lines[0]
    one = ("--model.rollout.guidance_scale", 1, "--model.evaluation.guidance_scale", 1)
    assert guardlit("fit", "--config", path, *one, "--trainer.max_epochs", 1) == 0
