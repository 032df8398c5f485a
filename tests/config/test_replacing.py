"""A class that replaces another one takes none of its options, and dropped ones that the user wrote are listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import config, guardlit

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "configs" / "sd35_pickscore.yaml"

BASE = """
trainer:
  callbacks:
  - {class_path: guardlit_callbacks.TrainableEMA, init_args: {decay: 0.77}}
  - {class_path: guardlit_callbacks.SampleGrid, init_args: {columns: 5}}
model:
  policy: {class_path: SD3Policy, init_args: {model: mine, resolution: 64}}
  reward:
    class_path: Composite
    init_args:
      terms:
      - {scorer: {class_path: PickScore, init_args: {model: mine}}, weight: 2.0, divide: 26.0}
      - {scorer: {class_path: CLIPScore, init_args: {model: mine}}}
data: {train: guardlit://prompts/digits.jsonl}
"""


def resolved(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[dict[str, Any], list[str]]:
    """The configuration that a command line comes to, and the lines on stderr."""
    capsys.readouterr()
    assert guardlit("fit", *args, "--print_config") == 0
    out, err = capsys.readouterr()
    return yaml.safe_load(out), err.splitlines()


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "--model.reward CLIPScore": (
        {"model": "openai/clip-vit-large-patch14"},
        "model.reward is CLIPScore; dropped what was set for PickScore: model=yuvalkirstain/PickScore_v1 (",
    ),
    "--model.reward.class_path CLIPScore --model.reward.model mine": ({"model": "mine"}, ""),
    "--model.optimizer Adafactor": ({"lr": 0.01, "eps": [None, 0.001], "weight_decay": 0.0}, "betas=[0.9, 0.999] ("),
    "--model.optimizer Adagrad": ({"lr": 0.01, "eps": 1e-10, "weight_decay": 0.0}, "for AdamW: betas=[0.9, 0.999] ("),
    "--model.sde CPS": ({"noise_level": 0.8}, "noise_level=0.7 ("),
    "--model.policy FluxPolicy --model.policy.model=mine": (
        {"model": "mine", "weights_dtype": "fp32", "text_encoder_dtype": "fp32"},
        "lora.init=gaussian (",
    ),
    "--model.lr_scheduler=StepLR --model.lr_scheduler.step_size=3 --model.lr_scheduler=LinearLR": (
        {"total_iters": 5},
        "model.lr_scheduler is LinearLR; dropped what was set for StepLR: step_size=3 (--model.lr_scheduler.step_size)",
    ),
}


@pytest.mark.parametrize("options", CHANGES)
def test_a_class_changed_by_an_option_has_its_own_defaults(options: str, capsys: pytest.CaptureFixture[str]):
    expected, line = CHANGES[options]
    settings, said = resolved(capsys, "--config", RECIPE, *options.split())
    chosen = settings["model"][options.split()[0].replace("=", ".").split(".")[1]]
    assert {name: chosen["init_args"][name] for name in expected} == expected
    assert "step_size" not in chosen["init_args"]
    assert len(said) == (1 if line else 0)
    assert line in "".join(said)


def test_the_same_class_keeps_its_options(capsys: pytest.CaptureFixture[str]):
    for name in ("PickScore", "guardlit.PickScore", "guardlit.rewards.clip.pickscore.PickScore"):
        settings, said = resolved(capsys, "--config", RECIPE, "--model.reward", name)
        assert settings["model"]["reward"]["init_args"]["model"] == "yuvalkirstain/PickScore_v1"
        assert said == []
    settings, said = resolved(capsys, "--config", RECIPE, "--model.optimizer", "torch.optim.adamw.AdamW")
    assert settings["model"]["optimizer"]["init_args"]["weight_decay"] == 1e-4
    assert said == []


def test_the_line_names_the_class_that_is_used(capsys: pytest.CaptureFixture[str]):
    _, said = resolved(capsys, "--config", RECIPE, "--model.sde=CPS", "--model.sde=FlowSDE")
    assert len(said) == 1
    assert "model.sde is FlowSDE; dropped what was set for FlowSDE: noise_level=0.7 (" in said[0]
    _, said = resolved(
        capsys, "--config", RECIPE, "--model.sde=CPS", "--model.sde.noise_level=0.5", "--model.sde=DanceSDE"
    )
    assert said[-1].endswith("dropped what was set for CPS: noise_level=0.5 (--model.sde.noise_level)")


def test_what_nobody_wrote_is_dropped_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run.yaml"
    path.write_text(BASE)
    settings, said = resolved(capsys, "--config", path, "--model.optimizer=Adagrad")
    assert settings["model"]["optimizer"]["init_args"]["eps"] == 1e-10  # AdamW's is 1e-8
    assert said == []
    _, said = resolved(capsys, "--config", path, "--model.optimizer.lr=3", "--model.optimizer=Adagrad")
    assert len(said) == 1
    said_of_lr = "model.optimizer is Adagrad; dropped what was set for AdamW: lr=3 (--model.optimizer.lr)"
    assert said[0].endswith(f"{said_of_lr}; give --model.optimizer before its options")


def test_a_file_replaces_classes_of_its_bases_in_silence(capsys: pytest.CaptureFixture[str]):
    recipe = ROOT / "configs" / "flux_multi_mix.yaml"  # whose bases have HPSv2 and DanceSDE
    prompts = ("--data.train", "guardlit://prompts/digits.jsonl")
    settings, said = resolved(capsys, "--config", recipe, *prompts)
    assert settings["model"]["reward"]["class_path"].endswith("Composite")
    assert said == []
    _, said = resolved(capsys, "--config", RECIPE, "--config", recipe, *prompts)
    assert any("dropped what was set for PickScore" in line for line in said)


def test_a_later_file_replaces_classes_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(BASE)
    second.write_text(
        "trainer:\n  callbacks:\n  - guardlit_callbacks.TrainableEMA\n  - guardlit_callbacks.GradientNorm\n"
        "model:\n  policy: {class_path: FluxPolicy, init_args: {model: other}}\n"
        "  reward:\n    init_args:\n      terms: [{scorer: CLIPScore}, {scorer: CLIPScore}]\n"
    )
    settings, said = resolved(capsys, "--config", first, "--config", second)
    ema, norm = settings["trainer"]["callbacks"]
    assert ema["init_args"]["decay"] == 0.9
    assert norm["class_path"] == "guardlit_callbacks.GradientNorm"
    assert settings["model"]["policy"]["init_args"]["resolution"] == 512
    for term in settings["model"]["reward"]["init_args"]["terms"]:
        assert (term["weight"], term["divide"]) == (1.0, 1.0)
        assert term["scorer"]["init_args"]["model"] == "openai/clip-vit-large-patch14"
    dropped = f"resolution=64 ({first}:7)"  # the model is given again
    assert said == [f"guardlit fit: model.policy is FluxPolicy; dropped what was set for SD3Policy: {dropped}"]


def test_options_reach_the_last_item_of_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "run.yaml"
    path.write_text(BASE)
    more = ["--trainer.callbacks.columns=3", "--trainer.callbacks+=guardlit_callbacks.GradientNorm"]
    settings, said = resolved(capsys, "--config", path, *more)
    ema, grid, norm = settings["trainer"]["callbacks"]
    assert (ema["init_args"]["decay"], grid["init_args"]["columns"]) == (0.77, 3)
    assert norm["class_path"] == "guardlit_callbacks.GradientNorm"
    assert said == []


def test_adafactor_trains_in_place_of_adamw(sd3_folder: Path, tmp_path: Path):
    path = config(tmp_path, sd3_folder, trainer__max_epochs=1)
    assert guardlit("fit", "--config", path, "--model.optimizer", "torch.optim.Adafactor") == 0
