"""`guardlit plan`: a run measured on a skeleton, against published numbers and the memory of a real run."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from families import FAMILIES, SIDE
from published import SD35_MEDIUM
from runs import config, guardlit

from guardlit.commands.plan import planned
from guardlit.devices.meter import backward, measured
from guardlit.devices.storage import pinned_bytes
from guardlit.planning.estimate import estimate
from guardlit.policies import LoRA, SD3Policy

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "forward", "backward_flops"), [({"lora": None}, 2.22, None), ({}, 2.24, 85.5 / 18 - 2.22)]
)
def test_sd35_medium_takes_the_published_operations(
    options: dict, forward: float, backward_flops: float | None, sd3_folder: Path, tmp_path: Path
):
    """At 512 pixels and 77 + 128 text tokens 2.22 TFLOP a forward; under guidance 44.4 in 10 steps, 85.5 to train 9."""
    shutil.copytree(sd3_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "transformer/config.json").write_text(json.dumps(SD35_MEDIUM))
    for file in (tmp_path / "transformer").glob("*.safetensors"):
        file.unlink()  # not read
    policy = SD3Policy(str(tmp_path), 512, text_encoder_dtype="fp16", **options).skeleton()
    conditioning = policy.conditioning(["a cat"])
    assert conditioning["prompt_embeds"].shape == (1, 205, 4096)
    assert policy.footprint().embedding == pytest.approx(1.7e6, rel=0.02)
    latents, sigma = torch.empty(1, 16, 64, 64, device="meta"), torch.empty(1, device="meta")
    with measured() as cost:
        velocity = policy.velocity(latents, sigma, conditioning, 1.0)
    assert cost.flops / 1e12 == pytest.approx(forward, rel=0.005)
    assert 20 * cost.flops / 1e12 == pytest.approx(44.4, rel=0.015)
    if backward_flops is not None:  # towards inputs alone, and the adapter's weights
        with measured() as back:
            backward(velocity.sum())
        assert 18 * (cost.flops + back.flops) / 1e12 == pytest.approx(85.5, rel=0.005)
        assert policy.footprint().trained == pytest.approx(18.8e6 * 4, rel=0.005)


def test_the_plan_of_a_run(sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = config(tmp_path, sd3_folder, trainer__devices=2)
    assert guardlit("plan", "--config", path, "--tflops", 1, "--mfu", 0.5, "--json", tmp_path / "plan.json") == 0
    out = capsys.readouterr().out
    for part in ("3 rounds: 24 images, 12 updates", "Compute, at 50% of 1 TFLOP/s on 2 device(s)", "training", "Disk"):
        assert part in out
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["run"]["processes"], plan["run"]["validation_images"]) == (2, 4)
    per, flop = plan["flop_per_image"], plan["flop"]
    assert per["rollout"] == pytest.approx(5 * per["forward"])
    assert 1.8 * per["forward"] < per["evaluation"] < 2 * per["forward"]  # the adapter is merged into the weights there
    assert flop["training"] == 24 * per["training"]
    assert plan["hours"]["training"] == pytest.approx(flop["training"] / 1e12 / 3600)  # 2 x 1 TFLOP/s x 0.5
    memory, steps = plan["memory"], 4
    assert memory["parts"]["trajectories of a round"] == 2 * 4 * steps * 16 * 4 * 4 * 4  # 4 images on each of two
    assert memory["parts"]["optimizer"] == pytest.approx(2 * memory["parts"]["trained weights"], rel=0.01)
    assert memory["peak"] == max(memory["phases"].values())
    assert not (tmp_path / "runs").exists()


def test_a_sharded_run_divides_the_weights(sd3_folder: Path, tmp_path: Path):
    path = config(tmp_path, sd3_folder, trainer__devices=2, model__policy__init_args__lora=None)
    single = estimate(planned(["--config", str(path)])).memory.parts
    sharded = estimate(planned(["--config", str(path), "--trainer.strategy", "fsdp"])).memory.parts
    for part in ("trained weights", "gradients", "optimizer", "average (EMA)", "old policy, reference"):
        assert sharded[part] == single[part] // 2 > 0
    assert single["gathered for a forward pass"] == 0
    strategy = (
        "--trainer.strategy=guardlit.training.sharded_strategy.ShardedStrategy",
        "--trainer.strategy.reshard_after_forward=false",
    )
    kept = estimate(planned(["--config", str(path), *strategy])).memory.parts
    # the tiny network has two blocks, so both settings gather all of it
    assert kept["gathered for a forward pass"] == sharded["gathered for a forward pass"] == single["trained weights"]


def test_without_the_model_it_plans_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = config(tmp_path, Path("owner/absent"))
    assert guardlit("plan", "--config", path) == 0
    out = capsys.readouterr().out
    assert "24 images, 12 updates" in out
    assert "'owner/absent' is no folder here and not in the hub cache" in " ".join(out.split())


def test_a_run_that_could_never_start_has_no_plan(sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert guardlit("plan", "--config", config(tmp_path, sd3_folder, data__updates_per_round=3)) == 2
    assert "updates_per_round" in capsys.readouterr().err
    assert guardlit("plan", "--config", config(tmp_path, sd3_folder), "--mfu", 40) == 2
    assert "--mfu 40" in capsys.readouterr().err


def test_a_group_is_sampled_once_until_its_images_differ(sd3_folder: Path, tmp_path: Path):
    window = {"class_path": "guardlit.rounds.windows.RandomWindow", "init_args": {"length": 1, "low": 2, "high": 3}}
    rollout = {"num_inference_steps": 5, "guidance_scale": 1.0, "window": window, "initial_noise": "group"}
    path = config(tmp_path, sd3_folder, model__rollout=rollout, data__rollout_batch=8)
    found = estimate(planned(["--config", str(path)])).compute
    # three steps before the noise of step 2 take 2 rows, two after it 8
    assert found.rollout / found.forward == pytest.approx((3 * 2 + 2 * 8) / 8)


def test_memory_of_trajectories(sd3_folder: Path, tmp_path: Path):
    """Unused velocities are not counted; old velocities are recomputed from the second of 4 updates on."""

    def plan(old_velocity: str, *options: str, **changes: object):
        path = config(tmp_path, sd3_folder, model__old_velocity=old_velocity, trainer__accelerator="cuda", **changes)
        return estimate(planned(["--config", str(path), *options]))

    stored, again = plan("stored"), plan("recomputed")
    assert again.trajectories == stored.trajectories // 2
    recomputed = 4 * 2 * (1 - 1 / 4) * again.compute.forward  # trained steps, inner epochs
    assert again.compute.training - stored.compute.training == pytest.approx(recomputed, rel=1e-6)
    assert plan("auto").trajectories == stored.trajectories
    assert plan("auto", data__rollout_batch=8).trajectories == again.trajectories
    host = plan("stored", "--model.rollout.trajectories", "host").memory
    assert host.host - stored.memory.host == stored.trajectories
    for phase in ("training", "update", "validation", "rollout"):
        assert stored.memory.phases[phase] - host.phases[phase] == stored.trajectories


def test_pinned_memory_is_rounded_up(sd3_folder: Path, tmp_path: Path):
    """To powers of two: three quarters of the images take as much as all; every weight is rounded separately."""
    options = {"trainer__accelerator": "cuda", "model__rollout__trajectories": "host"}

    def host(lora: dict[str, float] | None, images: int) -> int:
        options["model__policy__init_args__lora"] = lora
        path = config(tmp_path, sd3_folder, data__images_per_prompt=images, **options)
        return estimate(planned(["--config", str(path)])).memory.host

    lora = {"rank": 4, "alpha": 8.0}
    assert host(lora, 6) == host(lora, 8)
    policy = SD3Policy(str(sd3_folder), SIDE, lora=None)
    policy.load()
    assert host(None, 8) - host(lora, 8) == sum(pinned_bytes(p.numel() * 4) for p in policy.transformer.parameters())


def _benchmark():
    path = Path(__file__).parents[2] / "benchmarks/memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_memory", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("case", list(_benchmark().CASES))
def test_the_estimate_is_within_15_percent_of_a_real_run(case: str):
    measured_bytes, estimated, _ = _benchmark().compare(case)
    assert math.isclose(estimated, measured_bytes, rel_tol=0.15)


def test_full_fine_tuning_reports_what_crosses_the_bus(sd3_folder: Path, tmp_path: Path, capsys):
    full = {"model__policy__init_args__lora": None, "model__policy__init_args__reference": True}
    again = {"model__old_velocity": "recomputed", "model__kl": {"weight": 0.1}, "trainer__accelerator": "gpu"}
    for changes in ({}, {"model__policy__init_args__copies_device": None}, {"trainer__accelerator": "cpu"}):
        path = config(tmp_path, sd3_folder, **{**full, **again, **changes})
        assert guardlit("plan", "--config", path, "--json", tmp_path / "plan.json") == 0
        document = json.loads((tmp_path / "plan.json").read_text())
        found = {f["rule"]: f["text"] for f in document["findings"]}
        assert ("copies cross the bus" in found) == (not changes)
        if not changes:
            moved = 2 * document["memory"]["parts"]["trained weights"] / 1e9  # old policy and reference
            assert (
                f"model.old_velocity: recomputed and model.kl with full fine-tuning: {moved:.1f} GB"
                in (found["copies cross the bus"])
            )
            assert "policy.copies_device: null" in found["copies cross the bus"]


@pytest.mark.parametrize("lora_rank", [2])
def test_a_merged_rollout_adds_copies_and_saves_the_adapters_operations(
    lora_rank: int, sd3_folder: Path, tmp_path: Path
):
    plans = {}
    lora = {"model__policy__init_args__lora": {"rank": lora_rank, "alpha": 4.0}}
    for merge in (True, False):
        rollout = {"num_inference_steps": 5, "guidance_scale": 1.0, "merge": merge}
        path = config(tmp_path, sd3_folder, model__rollout=rollout, **lora)
        assert guardlit("plan", "--config", path, "--json", tmp_path / "plan.json") == 0
        plans[merge] = json.loads((tmp_path / "plan.json").read_text())
    policy = FAMILIES["sd3"].policy(str(sd3_folder), 64, LoRA(lora_rank, 4)).skeleton()
    layers = [m.get_base_layer().weight for m in policy.transformer.modules() if hasattr(m, "lora_A")]
    copies = sum(weight.numel() * 4 for weight in layers)
    parts = [plans[merge]["memory"]["parts"].get("merged weights, while drawing", 0) for merge in (True, False)]
    assert parts == [copies, 0]
    for phase in ("rollout", "evaluation"):
        assert plans[True]["flop_per_image"][phase] < plans[False]["flop_per_image"][phase]
    assert plans[True]["flop_per_image"]["training"] == plans[False]["flop_per_image"]["training"]


RECIPES = sorted(p for p in (ROOT / "configs").glob("*.yaml") if "gold" not in p.name)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_measured_without_a_hub_cache(recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", _absent)
    policy = planned(["--config", str(recipe)]).module.policy.skeleton()
    own = policy.model.startswith("guardlit://")
    assert policy.sizes_of == (None if own else policy.model)
    tensors = [p for p in policy.transformer.parameters() if not p.requires_grad] + list(policy.transformer.buffers())
    billions = sum(tensor.numel() for tensor in tensors) / 1e9
    if not own:  # the numbers of the published files; here also an adapter's copy
        assert billions == pytest.approx(11.90 if "FLUX" in policy.model else 2.47, rel=0.02)
        assert policy.footprint().encoders > 9e9


def _absent(*_: object, **__: object) -> str:
    raise OSError("not in the cache")


def test_a_recipe_without_prompts_of_its_own_can_be_planned(capsys: pytest.CaptureFixture[str]):
    assert guardlit("plan", "--config", ROOT / "configs" / "sd35_ocr_guard.yaml") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "data.train is not set: embeddings of one round's prompts are counted" in out
    assert "as published for stabilityai/stable-diffusion-3.5-medium" in out
    assert "Memory of a process" in out
