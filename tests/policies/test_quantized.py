"""A frozen base in 4 or 8 bits.

Needs the extra: `pip install 'guardlit[quant]' && pytest tests/policies/test_quantized.py`.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import config, differing, guardlit, newest, start
from tiny_folders import make_flux, make_sd3
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from guardlit.devices.meter import measured
from guardlit.errors import GuardlitError
from guardlit.policies import FluxPolicy, LoRA, SD3Policy
from guardlit.policies.text.prompted import set_aside
from guardlit.policies.weights.quantized import QuantizedLinear, _full, quantize_skeleton
from guardlit.policies.weights.storage import bytes_of
from guardlit.training.ddp import keep_quantized

NEEDS = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}
ERROR = {"nf4": (0.03, 0.3), "int8": (1e-3, 0.02), "fp8": (0.01, 0.1)}
"""Bounds on the relative error of a velocity: what so many bits leave of normal weights, through a few layers."""
HALF = {
    "model__policy__init_args__weights_dtype": "bf16",
    "trainer__precision": "bf16-mixed",
    "model__old_velocity": "recomputed",
}


def needs(kind: str) -> pytest.MarkDecorator:
    library = NEEDS.get(kind, kind)
    reason = f"{library} is not installed: pip install 'guardlit[quant]'"
    return pytest.mark.skipif(find_spec(library) is None, reason=reason)


KINDS = [pytest.param(kind, marks=needs(kind)) for kind in NEEDS]


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd3(tmp_path_factory.mktemp("models") / "sd3")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flux(tmp_path_factory.mktemp("models") / "flux")


def policy(folder: Path, kind: str | None, dtype: str = "fp32", cls: type = SD3Policy, **changes: object) -> SD3Policy:
    settings = {"resolution": 32, "lora": LoRA(rank=4, alpha=8.0), "max_sequence_length": 16, "cache": None} | changes
    return cls(str(folder), weights_dtype=dtype, quantization=kind, **settings)


def loaded(*args: object, **kwargs: object) -> SD3Policy:
    made = policy(*args, **kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made.load()
    made.encode(["a cat"])
    return made


def velocity(of: SD3Policy, rows: int = 2) -> torch.Tensor:
    latents = torch.randn(rows, *of.latent_shape, generator=torch.Generator().manual_seed(1))
    return of.velocity(latents, torch.full((rows,), 0.5), of.conditioning(["a cat"] * rows), 1.0)


def perturb(of: SD3Policy) -> None:
    """Give the adapter something to say."""
    with torch.no_grad():
        for name, parameter in of.named_parameters():
            if ".lora_B.default" in name:
                parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(2))


# one policy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_the_skeleton_counts_the_bytes_that_a_loaded_base_has(
    kind: str, dtype: str, family: str, request: pytest.FixtureRequest
):
    folder, cls = request.getfixturevalue(family), {"sd3": SD3Policy, "flux": FluxPolicy}[family]
    made = policy(folder, kind, dtype, cls)
    plain = policy(folder, None, dtype, cls).skeleton().footprint().frozen
    planned = made.skeleton().footprint().frozen
    made.load()
    frozen = [p for n, p in made.transformer.named_parameters() if ".lora_" not in n]
    assert planned == bytes_of(frozen) == made.footprint().frozen
    assert planned < plain


@pytest.mark.parametrize("kind", KINDS)
def test_velocities_are_near_those_of_the_base_as_it_is(sd3: Path, kind: str):
    exact, near = velocity(loaded(sd3, None)), velocity(loaded(sd3, kind))
    low, high = ERROR[kind]
    assert low < float((near - exact).detach().norm() / exact.detach().norm()) < high


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_a_base_that_holds_the_unpacked_weights(sd3: Path, kind: str):
    """Against autograd through plain layers with the same values."""
    found: list[dict[str, torch.Tensor]] = []
    made = loaded(sd3, kind)
    perturb(made)
    for _ in range(2):
        made.zero_grad()
        velocity(made).square().sum().backward()
        found.append({n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None})
        for layer in [m for m in made.modules() if isinstance(m, QuantizedLinear)]:
            values = _full(layer.weight, getattr(layer.weight, "quant_state", None), torch.float32)
            layer.__class__ = torch.nn.Linear
            layer.weight = torch.nn.Parameter(values, requires_grad=False)
    quantized, plain = found
    assert quantized.keys() == plain.keys()
    assert quantized
    for name, gradient in plain.items():
        torch.testing.assert_close(quantized[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_no_unpacked_weight_waits_for_the_backward_pass(sd3: Path, kind: str):
    seen: list[torch.Tensor] = []
    made = loaded(sd3, kind, "bf16")

    def see(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor

    with saved_tensors_hooks(see, lambda t: t):
        velocity(made)
    shapes = {tuple(p.shape) for n, p in loaded(sd3, None).named_parameters() if p.ndim == 2 and ".lora_" not in n}
    kept = [t for t in seen if type(t) is torch.Tensor and tuple(t.shape) in shapes | {s[::-1] for s in shapes}]
    own = {p.data_ptr() for p in made.parameters() if type(p) is torch.nn.Parameter}
    assert [t.shape for t in kept if t.is_floating_point() and t.data_ptr() not in own] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_float32_and_computes_in_the_dtype_of_the_weights(sd3: Path, kind: str):
    made = loaded(sd3, kind, "bf16")
    trained = [p for p in made.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert made.forward_dtype == torch.bfloat16
    down = made.transformer.transformer_blocks[0].attn.to_q.lora_A["default"]
    seen: list[torch.dtype] = []
    down.register_forward_hook(lambda _, args, out: seen.extend((args[0].dtype, out.dtype)))
    assert velocity(made).dtype == torch.float32
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_checkpointing_go_with_it(sd3: Path, kind: str):
    made = loaded(sd3, kind, gradient_checkpointing=True)
    with torch.autocast("cpu", torch.bfloat16):
        velocity(made).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_were_set_aside_come_back(sd3: Path, kind: str):
    made = loaded(sd3, kind)
    before = velocity(made)
    with set_aside(made.transformer):
        pass
    assert torch.equal(velocity(made), before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_lora_loads_in_plain_diffusers(sd3: Path, kind: str, tmp_path: Path):
    from diffusers import StableDiffusion3Pipeline

    made = loaded(sd3, kind)
    perturb(made)
    made.export(tmp_path)
    pipeline = StableDiffusion3Pipeline.from_pretrained(sd3)
    pipeline.load_lora_weights(tmp_path)
    theirs = dict(pipeline.transformer.named_parameters())
    ours = {n: p for n, p in made.transformer.named_parameters() if ".default." in n}
    assert ours
    for name, parameter in ours.items():
        assert torch.equal(theirs[name.replace(".default.", ".default_0.")], parameter)
    expected = velocity(made).detach()
    fresh = loaded(sd3, kind)
    assert not torch.equal(velocity(fresh), expected)
    with fresh.exported(tmp_path):
        assert torch.equal(velocity(fresh), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_weight_is_refused(kind: str, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = make_sd3(tmp_path / "broken")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["transformer_blocks.0.attn.to_q.weight"][3, 5] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(GuardlitError, match=r"to_q\.weight' holds NaN"):
        policy(folder, kind).load()


# what cannot be -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_quantized_is_refused(sd3: Path):
    with pytest.raises(GuardlitError, match="quantization=int4 is not known; write nf4, int8, fp8 or null"):
        policy(sd3, "int4")
    with pytest.raises(GuardlitError, match="quantization=nf4 is for weights that do not train, and lora: null"):
        policy(sd3, "nf4", lora=None)
    with pytest.raises(GuardlitError, match=r"quantization=int8 does not work with trainer\.strategy=fsdp"):
        policy(sd3, "int8").load(lambda network, blocks: None)


@pytest.mark.parametrize("kind", NEEDS)
def test_a_missing_library_is_named(sd3: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("guardlit.policies.weights.quantized.find_spec", lambda name: None)
    with pytest.raises(
        GuardlitError, match=rf"quantization={kind} needs {NEEDS[kind]}: pip install 'guardlit\[quant\]'"
    ):
        policy(sd3, kind).load()


def test_without_the_option_fingerprints_are_what_they_were(sd3: Path):
    plain, packed = policy(sd3, None).skeleton().fingerprint(), policy(sd3, "nf4").skeleton().fingerprint()
    assert plain["lora"] == str(LoRA(rank=4, alpha=8.0))
    assert packed == plain | {"lora": f"{plain['lora']} on nf4"}


# whole runs -----------------------------------------------------------------------------------------------------------


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


def test_the_weight_that_a_product_unpacks_is_counted():
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
    """With an 8-bit optimizer where it is installed: its tables and scales are part of the checkpoint."""
    changes: dict[str, object] = {**HALF, "model__policy__init_args__quantization": kind}
    changes["model__policy__init_args__lora"] = {"rank": 128, "alpha": 8.0}  # 4096 numbers a matrix: 8 bits of state
    if find_spec("bitsandbytes"):
        changes["model__optimizer"] = {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"lr": 1e-3}}
    saving = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"every_n_train_steps": 3, "save_top_k": -1},  # of 4 updates a round
    }
    changes |= {"trainer__max_epochs": 2, "trainer__callbacks": [saving]}
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    assert guardlit("fit", "--config", config(whole, sd3, **changes)) == 0
    middle, last = newest(whole, "*step=3*.ckpt"), "*step=6*.ckpt"
    state = torch.load(middle, weights_only=True)
    if find_spec("bitsandbytes"):
        moments = tree_leaves(state["optimizer_states"])
        assert torch.uint8 in {v.dtype for v in moments if isinstance(v, torch.Tensor)}
    assert all(".lora_" in name for name in state["state_dict"])
    assert guardlit("fit", "--config", config(part, sd3, **changes), "--ckpt_path", middle) == 0
    assert differing(newest(whole, last), newest(part, last), ("state_dict", "optimizer_states")) == []
    del changes["model__policy__init_args__quantization"]
    assert guardlit("fit", "--config", config(part, sd3, **changes), "--ckpt_path", middle) != 0


@pytest.mark.parametrize("kind", KINDS)
def test_ddp_goes_around_it(sd3: Path, kind: str):
    made = torch.nn.ModuleDict({"policy": loaded(sd3, kind)})
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        keep_quantized(made)
        DistributedDataParallel(made)
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@needs("int8")
def test_two_processes_keep_their_own_copy(sd3: Path, tmp_path: Path):
    """DDP cannot send torchao's weights round."""
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
