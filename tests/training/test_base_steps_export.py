"""Exports whose last denoising steps are the base model's: the card's code draws what guardlit draws."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, PROMPTS
from runs import config, guardlit, newest
from torch import Tensor
from velocities import disturb

from guardlit.errors import GuardlitError
from guardlit.policies import DiffusersPolicy
from guardlit.rounds.evaluate import draw_fixed
from guardlit.rounds.noise import EVALUATION, NoiseSource
from guardlit.rounds.settings import Sampling
from guardlit.training.model_card.card import Origin, write_card
from guardlit.training.model_card.run_facts import read_run_facts
from guardlit.training.model_card.sampling import FILE, read_sampling, write_sampling

T = 4


def latents(policy: DiffusersPolicy, prompt: str, k: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What guardlit draws of image 0, before decoding, (C, H, W)."""
    monkeypatch.setattr(policy, "decode", lambda latents: latents)
    return draw_fixed(policy, Sampling(T, 1.0, k), [prompt], [0], False)[0]


@pytest.mark.parametrize("k", [0, 1, 3, T])
@pytest.mark.parametrize(("to", "lora"), [("diffusers", True), ("peft", True), ("diffusers", False)])
def test_the_code_of_the_card_draws_what_guardlit_draws(
    to: str, lora: bool, k: int, sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    policy = FAMILIES["sd3"].load(sd3_folder, **({} if lora else {"lora": None, "reference": True}))
    disturb(policy, 0.3 if lora else 0.05)
    policy.export(tmp_path / "out", to)
    facts = policy.export_facts(to, False, T, 1.0, k)
    write_card(tmp_path / "out", facts, read_run_facts(None, 3), Origin(3, None), "raw")
    text = (tmp_path / "out/README.md").read_text()
    assert ("denoising steps of the base model" in text) == (k > 0)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert ("callback_on_step_end" in code) == (0 < k < T)
    prompt = "a red cup on a table"
    (tmp_path / "out" / sd3_folder.name).symlink_to(sd3_folder)
    monkeypatch.chdir(tmp_path / "out")
    names: dict[str, Any] = {"noise": NoiseSource(0, EVALUATION, policy.latent_shape).draw([0], -1)}
    code = code.replace(f'"{prompt}",', f'"{prompt}", latents=noise, output_type="latent",')
    exec(code, names)
    policy.encode([prompt])
    expected = latents(policy, prompt, k, monkeypatch)
    torch.testing.assert_close(names["image"], expected, rtol=1e-4, atol=1e-4)
    for other in {0, T} - {k}:
        assert float((latents(policy, prompt, other, monkeypatch) - expected).abs().max()) > 1e-2


def test_comfyui_gets_two_samplers(sd3_folder: Path):
    policy = FAMILIES["sd3"].load(sd3_folder)
    usage = [policy.export_facts("comfyui", False, 10, 1.0, k).usage for k in (0, 3)]
    assert "KSamplerAdvanced" not in usage[0]
    assert "end_at_step 7 and return_with_leftover_noise" in usage[1]
    assert usage[1].startswith(usage[0])


def test_what_is_recorded_is_read_and_no_older_one_stays(tmp_path: Path):
    assert read_sampling(tmp_path) is None
    write_sampling(tmp_path, Sampling(10, 4.5, 3))
    (tmp_path / "a.safetensors").touch()
    assert read_sampling(tmp_path) == read_sampling(tmp_path / "a.safetensors") == Sampling(10, 4.5, 3)
    for text in ("3", "{", '{"base_steps": 99}', '{"steps": 3}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(GuardlitError, match=rf"{FILE} does not say how to sample"):
            read_sampling(tmp_path)
    write_sampling(tmp_path, Sampling(10))
    assert not (tmp_path / FILE).exists()


# through the command line ---------------------------------------------------------------------------------------------

GOLD = ("--gold.scorers", "{brightness: brightness.Brightness}", "--prompts", *PROMPTS, "--images_per_prompt", 1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, sd3_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("run")
    at_end = [{"class_path": "guardlit.training.export.ExportAtEnd"}]
    evaluation = {"num_inference_steps": 2, "guidance_scale": 1.0, "base_steps": 1}
    changes = {"model__evaluation": evaluation, "trainer__callbacks": at_end, "model__optimizer__init_args__lr": 0.05}
    path = config(folder, sd3_folder, trainer__max_epochs=1, **changes)
    assert guardlit("fit", "--config", path) == 0
    return folder


def rows(run: Path, out: Path, *options: object) -> dict[str, int]:
    """The rows of an evaluation, and their numbers of base steps."""
    assert guardlit("evaluate", "--config", run / "run.yaml", *GOLD, "--out", out, *options) == 0
    return {row["label"]: row["base_steps"] for row in json.loads((out / "table.json").read_text())["models"]}


def test_an_export_at_the_end_and_one_of_the_checkpoint_record_it(run: Path, tmp_path: Path):
    again = ("export", "--config", run / "run.yaml", "--ckpt_path", newest(run), "--out", tmp_path)
    assert guardlit(*again) == 0
    for folder in (newest(run, "export") / "raw", tmp_path / "raw"):
        assert read_sampling(folder) == Sampling(2, 1.0, 1)
        assert "| denoising steps of the base model | the last 1 of 2 |" in (folder / "README.md").read_text()
    assert guardlit(*again, "--model.evaluation.base_steps", 0) == 0
    assert read_sampling(tmp_path / "raw") is None
    assert "base model |" not in (tmp_path / "raw/README.md").read_text()


def test_merged_weights_cannot_switch(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    export = ("export", "--config", run / "run.yaml", "--ckpt_path", newest(run), "--out", tmp_path / "out")
    assert guardlit(*export, "--merged", "true") == 2
    assert "--merged true: merged weights cannot be switched off for the last 1 steps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert guardlit(*export, "--merged", "true", "--model.evaluation.base_steps", 0) == 0


def test_the_record_decides_unless_the_option_does(run: Path, tmp_path: Path):
    export = newest(run, "export")
    zero = ("--model.evaluation.base_steps", 0)
    both = ("--ckpt", newest(run), export, "--label", "checkpoint", "lora")
    assert rows(run, tmp_path, *both) == {"base": 0, "checkpoint": 1, "lora": 1}
    assert rows(run, tmp_path, *both, *zero) == {"base": 0, "checkpoint": 0, "lora": 1}
    assert rows(run, tmp_path, *both, "--base_steps", 0) == {"base": 0, "checkpoint": 0, "lora": 0}


def test_full_fine_tuning_without_a_reference_is_refused_before_it_draws(
    run: Path, sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    full = ("--config", run / "run.yaml", "--model.policy.lora", "null")
    assert guardlit("validate", *full) == 2
    assert "base_steps=1: full fine-tuning keeps no weights of the base model" in capsys.readouterr().err
    whole = FAMILIES["sd3"].load(sd3_folder, lora=None)
    disturb(whole)
    whole.export(tmp_path / "whole")
    asked = (*GOLD, "--ckpt", tmp_path / "whole", "--out", tmp_path / "out", "--base_steps", "0,1")
    assert guardlit("evaluate", *full, *asked) == 2
    assert "'whole, base_steps 1': base_steps=1: full" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))
    # an exported LoRA has a base, the weights that have not trained
    lora = ("--ckpt", newest(run, "export"), "--out", tmp_path / "out", "--base_steps", "0,1")
    assert guardlit("evaluate", *full, *GOLD, *lora) == 0
