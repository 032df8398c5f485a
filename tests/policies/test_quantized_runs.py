"""Runs and plans with a frozen base in 4 or 8 bits; they need the extra `guardlit[quant]`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from quantized import KINDS, loaded, needs, velocity
from runs import config, differing, guardlit, newest, start
from tiny_folders import make_sd3
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from guardlit.devices.meter import measured
from guardlit.devices.storage import bytes_of
from guardlit.policies import LoRA
from guardlit.policies.weights.quantized import quantize_skeleton
from guardlit.training.ddp import keep_quantized

HALF = {
    "model__policy__init_args__weights_dtype": "bf16",
    "trainer__precision": "bf16-mixed",
    "model__old_velocity": "recomputed",
}


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd3(tmp_path_factory.mktemp("models") / "sd3")


def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str], sd3: Path, **changes: object) -> dict[str, object]:
    report = tmp_path / "plan.json"
    assert guardlit("plan", "--config", config(tmp_path, sd3, **changes), "--json", report) == 0
    capsys.readouterr()
    found: dict[str, object] = json.loads(report.read_text())["memory"]["parts"]
    return found


def test_plan_needs_no_library(
    sd3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("guardlit.policies.weights.quantized.find_spec", lambda name: None)
    key = "model__policy__init_args__quantization"
    plain, packed = (plan(tmp_path, capsys, sd3, **{**HALF, key: kind})["frozen weights"] for kind in (None, "nf4"))
    assert packed < plain


def test_the_weight_that_a_product_dequantizes_is_counted():
    with torch.device("meta"):
        layer = quantize_skeleton(torch.nn.Sequential(torch.nn.Linear(512, 512, bias=False)), "nf4")
        rows = torch.empty(4, 512, dtype=torch.bfloat16)
        with torch.no_grad(), measured() as cost:
            out = layer(rows)
    assert out.shape == (4, 512)
    assert cost.flops == 2 * 4 * 512 * 512
    assert cost.peak == 2 * (512 * 512 + 4 * 512)


@needs("bitsandbytes")
def test_plan_counts_an_8_bit_optimizer(sd3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from bitsandbytes.optim import AdamW8bit

    lora = {"model__policy__init_args__lora": {"rank": 256, "alpha": 8.0}}  # under 4096 numbers stay float32
    optimizer = {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"lr": 1e-3}}
    planned = plan(tmp_path, capsys, sd3, model__optimizer=optimizer, **lora)["optimizer"]
    full = plan(tmp_path, capsys, sd3, **lora)["optimizer"]
    made = loaded(sd3, None, lora=LoRA(rank=256, alpha=8.0))
    velocity(made).square().sum().backward()
    real = AdamW8bit([p for p in made.parameters() if p.requires_grad])
    real.step()
    tensors = [v for state in real.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    assert planned == bytes_of(tensors)
    assert planned < full / 3


@pytest.mark.parametrize("kind", [pytest.param("nf4", marks=needs("nf4")), pytest.param("int8", marks=needs("int8"))])
def test_a_run_resumes_within_a_round_bit_for_bit(sd3: Path, tmp_path: Path, kind: str):
    """With an 8-bit optimizer if it is installed: its tables and scales are part of the checkpoint."""
    changes: dict[str, object] = {**HALF, "model__policy__init_args__quantization": kind}
    changes["model__policy__init_args__lora"] = {"rank": 128, "alpha": 8.0}  # 4096 numbers a matrix: 8 bits of state
    if find_spec("bitsandbytes"):
        changes["model__optimizer"] = {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"lr": 1e-3}}
    saving = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": 3, "save_top_k": -1},  # of a round's 4 updates
    }
    changes |= {"trainer__max_epochs": 2, "trainer__callbacks": [saving]}
    complete, part = tmp_path / "complete", tmp_path / "part"
    for folder in (complete, part):
        folder.mkdir()
    assert guardlit("fit", "--config", config(complete, sd3, **changes)) == 0
    middle, last = newest(complete, "*step=3*.ckpt"), "*step=6*.ckpt"
    state = torch.load(middle, weights_only=True)
    if find_spec("bitsandbytes"):
        moments = tree_leaves(state["optimizer_states"])
        assert torch.uint8 in {v.dtype for v in moments if isinstance(v, torch.Tensor)}
    assert all(".lora_" in name for name in state["state_dict"])
    assert guardlit("fit", "--config", config(part, sd3, **changes), "--ckpt_path", middle) == 0
    assert differing(newest(complete, last), newest(part, last), ("state_dict", "optimizer_states")) == []
    del changes["model__policy__init_args__quantization"]
    assert guardlit("fit", "--config", config(part, sd3, **changes), "--ckpt_path", middle) != 0


@pytest.mark.parametrize("kind", KINDS)
def test_ddp_ignores_quantized_weights(sd3: Path, kind: str):
    made = torch.nn.ModuleDict({"policy": loaded(sd3, kind)})
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        keep_quantized(made)
        DistributedDataParallel(made)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@needs("int8")
def test_two_ranks_keep_separate_copies(sd3: Path, tmp_path: Path):
    """DDP cannot broadcast torchao's weights."""
    changes = {**HALF, "model__policy__init_args__quantization": "int8", "trainer__devices": 2}
    path = config(tmp_path, sd3, **{**changes, "trainer__max_epochs": 1, "data__inner_epochs": 1})
    process = start("fit", "--config", path)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err


@needs("nf4")
def test_a_merged_rollout_is_refused_in_one_line(sd3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changes = {**HALF, "model__policy__init_args__quantization": "nf4", "model__rollout__merge": True}
    assert guardlit("fit", "--config", config(tmp_path, sd3, **changes)) != 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "rollout.merge: true needs an adapter on layers that are not quantized" in last
