"""Every shipped YAML is a complete run, or gold scores for one."""

from __future__ import annotations

import itertools
import pydoc
import re
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from runs import guardlit, newest
from safetensors.torch import load_file
from torch import nn

from guardlit.commands.lightning_cli import GuardlitCLI
from guardlit.config.bases import bases
from guardlit.recipes.copying import copy
from guardlit.recipes.recipe import Recipe
from guardlit.rewards import PickScore
from guardlit.rewards.base import Scorer
from guardlit.rounds.plan import RoundPlan

CONFIGS = Path(__file__).parents[2] / "configs"
GOLD = sorted(CONFIGS.glob("gold_*.yaml"))
RUNS = sorted(set(CONFIGS.glob("*.yaml")) - set(GOLD))
PRESETS = sorted(CONFIGS.glob("gpu/*.yaml"))
PARTS = sorted(CONFIGS.glob("parts/*.yaml"))
METHODS = sorted(CONFIGS.glob("methods/*.yaml"))
PUBLISHED = CONFIGS / "sd35_pickscore.yaml"
TINY = {"tiny_digits", "tiny_words"}
TABLE_1 = {  # updates of the paper's Table 1 by row
    "sd35_ocr_tempflow": 480,
    **{f"sd35_{proxy}_{method}": updates for proxy, updates in (("geneval", 1860), ("pickscore", 10200), ("ocr", 480))
       for method in ("flow_grpo", "guard")},
    **{f"flux_{proxy}_{method}": updates for proxy, updates in (("geneval", 1260), ("ocr", 540))
       for method in ("dance", "guard")},
}  # fmt: skip


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Instantiate what `guardlit fit --config PATH ...` instantiates, without a run."""

    def _parse(*paths: Path) -> GuardlitCLI:
        configs = [word for path in paths for word in ("--config", str(path))]
        prompts = ["--data.train=prompts.txt"] if "=TRAIN." in paths[0].read_text(encoding="utf-8") else []
        here = ["--trainer.accelerator=cpu", "--trainer.devices=1", f"--trainer.default_root_dir={tmp_path}"]
        args = ["fit", *configs, *prompts, *here]
        monkeypatch.setattr(sys, "argv", ["guardlit", *args])
        monkeypatch.setattr(GuardlitCLI, "_run_subcommand", lambda *_: None)
        return GuardlitCLI()

    return _parse


@pytest.mark.parametrize("path", [*RUNS, *PRESETS, *PARTS, *METHODS], ids=lambda p: p.stem)
def test_it_says_on_top_what_it_is_and_how_to_run_it(path: Path):
    text = path.read_text(encoding="utf-8")
    comment = list(itertools.takewhile(lambda line: line[:1] == "#", text.splitlines()))
    assert comment
    name = path.relative_to(CONFIGS).with_suffix("").as_posix()
    if path in RUNS:
        assert f"guardlit fit --config {name}" in "\n".join(comment)
    if path in (*PRESETS, *METHODS):
        assert f"--config {name}" in "\n".join(comment)
    if path in PARTS:
        assert "part, not a run." in "\n".join(comment)


@pytest.mark.parametrize("path", [*RUNS, *PRESETS, *PARTS, *METHODS], ids=lambda p: p.stem)
def test_every_number_of_a_real_run_says_where_it_is_from(path: Path):
    if path.stem in TINY:
        pytest.skip("a tiny world has no published source")
    sources = (
        "paper|guard|base|script|guardlit|flow|flux|fast|dance|mix|author|tempflow|dppo|flash|pcpo|gardo|diverse|ddrl"
    )
    above = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, *_ = line.partition(":")
        if re.match(r"\s*\w+: *[^ #]", line) and key.strip() not in {"base", "class_path", "default_root_dir"}:
            assert re.search(rf"# ({sources})\b", line) or re.search(rf"# ({sources})\b", above), line
        if line.lstrip()[:1] == "#":
            above += line
        elif key.strip() != "train":  # val has the same comment
            above = ""


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_it_is_resolved_without_a_model_and_its_copy_is_the_same(path: Path, tmp_path: Path, capsys):
    assert guardlit("fit", "--config", path, "--print_config") == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved.keys() >= {"model", "data", "trainer"}
    copy(Recipe((path.stem,)), tmp_path / "copy.yaml")
    assert guardlit("fit", "--config", tmp_path / "copy.yaml", "--print_config") == 0
    assert yaml.safe_load(capsys.readouterr().out) == resolved


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_it_is_instantiated_and_divides_on_every_gpu(path: Path, parse):
    cli = parse(path)
    assert cli.model.policy.transformer is None  # weights load with a trainer
    *sizes, micro_batch = cli.datamodule.sizes
    steps = cli.model.rollout.train_steps
    plan = RoundPlan(*sizes, micro_batch, train_steps=steps)  # raises for numbers that do not divide
    if cli.model.objective.clip_range is not None:
        assert plan.off_policy_updates > 0  # with one update a round no clip could act
    if path.stem in TABLE_1:
        assert cli.trainer.max_epochs * plan.updates_per_round == TABLE_1[path.stem]
    if path.stem not in TINY:
        for preset in PRESETS:
            merged: dict = {}
            for file in [*bases(preset, []), preset]:
                merged |= yaml.safe_load(file.read_text()).get("data", {})
            world = yaml.safe_load(preset.read_text())["trainer"]["devices"]
            RoundPlan(*sizes, merged["micro_batch"], train_steps=steps, world_size=world)


def test_the_rows_of_table_1_are_all_there():
    assert TABLE_1.keys() <= {path.stem for path in RUNS}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.stem)
def test_a_preset_changes_only_the_micro_batches(preset: Path, parse):
    plain, merged = parse(PUBLISHED), parse(PUBLISHED, preset)
    assert merged.datamodule.sizes[:-1] == plain.datamodule.sizes[:-1]
    assert vars(merged.model.objective) == vars(plain.model.objective)
    assert (merged.model.rollout, merged.model.advantage) == (plain.model.rollout, plain.model.advantage)
    assert merged.model.policy.lora == plain.model.policy.lora
    assert merged.model.old_velocity == "auto"


@pytest.mark.parametrize("run", ["sd35_ocr_flow_grpo", "sd35_pickscore", "tiny_digits"])
@pytest.mark.parametrize("method", METHODS, ids=lambda p: p.stem)
def test_a_method_changes_how_a_run_trains_and_nothing_else(method: Path, run: str, parse, tmp_path: Path):
    own = list(yaml.safe_load(method.read_text(encoding="utf-8"))["model"])
    assert set(own) <= {"objective", "rollout", "kl", "advantage", "data_loss", "reward"}
    plain, merged = parse(CONFIGS / f"{run}.yaml"), parse(CONFIGS / f"{run}.yaml", method)
    *sizes, micro_batch = merged.datamodule.sizes
    RoundPlan(*sizes, micro_batch, train_steps=merged.model.rollout.train_steps)
    assert merged.datamodule.sizes == plain.datamodule.sizes
    assert merged.model.policy.lora == plain.model.policy.lora
    copy(Recipe((run, f"methods/{method.stem}")), tmp_path / "copy.yaml")


@pytest.mark.parametrize("name", ["sd35_ocr_guard", "flux_geneval_dance"])
def test_missing_prompts_are_named_in_one_line(name: str, capsys, tmp_path: Path):
    here = ("--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}")
    assert guardlit("fit", "--config", CONFIGS / f"{name}.yaml", *here) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "guardlit fit: error: missing data.train: give --data.train or set it in a --config file"


@pytest.mark.parametrize("path", GOLD, ids=lambda p: p.stem)
def test_gold_fits_the_run_that_it_names(path: Path, capsys: pytest.CaptureFixture[str]):
    comment = path.read_text(encoding="utf-8").split("\ngold:")[0]
    (run,) = re.findall(rf"guardlit evaluate --config (\w+) --config {path.stem}\b", comment)
    assert guardlit("evaluate", "--config", CONFIGS / f"{run}.yaml", "--config", path, "--print_config") == 0
    gold = yaml.safe_load(capsys.readouterr().out)["gold"]
    assert set(gold["average"]) <= set(gold["scorers"])
    scorers = {name: scorer["class_path"] for name, scorer in gold["scorers"].items()}
    assert all(issubclass(pydoc.locate(path), Scorer) for path in scorers.values())


def _find(callbacks: list[Callback], name: str) -> Callback:
    (found,) = [callback for callback in callbacks if type(callback).__name__ == name]
    return found


def test_the_published_settings_reach_the_model(parse):
    cli = parse(PUBLISHED)
    model, policy, objective = cli.model, cli.model.policy, cli.model.objective
    assert (policy.model, policy.resolution) == ("stabilityai/stable-diffusion-3.5-medium", 512)
    assert (policy.lora.rank, policy.lora.alpha, policy.lora.init, policy.lora.targets) == (32, 64, "gaussian", None)
    assert (policy.weights_dtype, policy.max_sequence_length, policy.text_encoder_3) == (torch.float16, 128, True)
    (term,) = model.reward.terms.values()
    assert (type(term.scorer), term.scorer.model) == (PickScore, "yuvalkirstain/PickScore_v1")
    assert vars(model.sde) == {"noise_level": 0.7}
    assert (objective.form, objective.weight) == ("ratio_norm", "inverse_dt")
    assert (objective.clip_range, objective.clip_unit) == ((4e-6, 4e-6), "mean")
    assert (model.advantage.std, model.advantage.eps, model.advantage.clip) == ("group", 1e-4, 5.0)
    assert (model.rollout.num_inference_steps, model.rollout.guidance_scale, model.rollout.train_steps) == (10, 4.5, 9)
    assert (model.evaluation.num_inference_steps, model.evaluation.guidance_scale) == (40, 4.5)
    assert (model.kl, model.old_velocity) == (None, "stored")


def test_the_published_settings_reach_the_trainer(parse):
    cli = parse(PUBLISHED)
    optimizer = cli.model.make_optimizer([nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.AdamW)
    _has_published_hyperparameters(optimizer.param_groups[0])
    ema = _find(cli.trainer.callbacks, "TrainableEMA")
    assert (ema.decay, ema.every, ema.warmup) == (0.9, 8, False)
    assert cli.trainer.gradient_clip_val == 1.0
    assert cli.trainer.check_val_every_n_epoch == 30
    assert cli.trainer.precision == "bf16-mixed"  # Lightning's substitute for 16-mixed on a CPU
    assert cli.datamodule.seed == 42


def _has_published_hyperparameters(group: dict) -> None:
    assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (1e-4, (0.9, 0.999), 1e-4, 1e-8)


@pytest.mark.parametrize(("gpus", "backward_passes"), [(1, 576), (8, 72), (16, 36)])
def test_the_published_arithmetic(gpus: int, backward_passes: int, parse):
    cli = parse(PUBLISHED)
    plan = RoundPlan(*cli.datamodule.sizes, train_steps=cli.model.rollout.train_steps, world_size=gpus)
    assert (plan.images, plan.updates_per_round, plan.off_policy_updates) == (1152, 2, 1)
    # published: 16 processes x 9 images x 8 batches, each update after 4 batches x 9 steps of backward passes
    assert plan.micro_batches_per_update == backward_passes
    assert plan.local_images * gpus == 16 * 9 * 8
    assert cli.datamodule.rollout_batch == 9


def _fit_published(sd3_folder: Path, clip_folder: Path, runs: Path, *overrides: str) -> int:
    folders = (f"--model.policy.model={sd3_folder}", f"--model.reward.model={clip_folder}")
    here = ("--trainer.accelerator=cpu", f"--trainer.default_root_dir={runs}", "--trainer.max_epochs=1")
    stored = "--model.policy.weights_dtype=bf16"  # fp16 trains with 16-mixed's loss scale, which a CPU lacks
    return guardlit("fit", "--config", PUBLISHED, *folders, *here, stored, *overrides)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GUARDLIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("own_cache")
def test_the_published_settings_train_tiny_folders(sd3_folder: Path, clip_folder: Path, tmp_path: Path):
    small = ("--data.prompts_per_round=2", "--data.images_per_prompt=2", "--data.val_limit=1")
    assert _fit_published(sd3_folder, clip_folder, tmp_path / "runs", *small) == 0
    checkpoint = torch.load(newest(tmp_path), weights_only=True)
    assert checkpoint["global_step"] == 2
    _has_published_hyperparameters(checkpoint["optimizer_states"][0]["param_groups"][0])
    ranks = {min(weight.shape) for name, weight in checkpoint["state_dict"].items() if ".lora_" in name}
    assert ranks == {32}
    for kind in ("raw", "ema"):
        exported = load_file(next(tmp_path.rglob(f"export/{kind}/*.safetensors")))
        assert len(exported) == len(checkpoint["state_dict"])
    raw = load_file(next(tmp_path.rglob("export/raw/*.safetensors")))
    assert max(float(weight.abs().max()) for name, weight in raw.items() if "lora_B" in name) > 0  # it was trained


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("own_cache")
def test_a_complete_published_round_on_tiny_folders(sd3_folder: Path, clip_folder: Path, tmp_path: Path):
    """1152 images of 512 pixels and 120 validation images: half an hour on one idle core."""
    started = time.perf_counter()
    assert _fit_published(sd3_folder, clip_folder, tmp_path / "runs") == 0
    print(f"one round of {PUBLISHED.name} on tiny folders: {time.perf_counter() - started:.0f} s")
    assert torch.load(newest(tmp_path), weights_only=True)["global_step"] == 2
