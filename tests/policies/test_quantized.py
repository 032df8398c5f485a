"""A frozen base in 4 or 8 bits.

Needs the extra: `pip install 'guardlit[quant]' && pytest tests/policies/test_quantized.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quantized import KINDS, NEEDS, loaded, perturb, policy, velocity
from tiny_folders import make_flux, make_sd3
from torch.autograd.graph import saved_tensors_hooks

from guardlit.devices.storage import bytes_of
from guardlit.errors import GuardlitError
from guardlit.policies import FluxPolicy, LoRA, SD3Policy
from guardlit.policies.parts.prompted import moved_to_host
from guardlit.policies.weights.quantized import QuantizedLinear, _full

ERROR = {"nf4": (0.03, 0.3), "int8": (1e-3, 0.02), "fp8": (0.01, 0.1)}
"""Bounds on the relative error of a velocity, for normal weights and a few layers."""


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sd3(tmp_path_factory.mktemp("models") / "sd3")


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flux(tmp_path_factory.mktemp("models") / "flux")


# one policy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_the_skeleton_counts_the_bytes_of_the_loaded_base(
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
def test_velocities_are_near_those_of_the_unquantized_base(sd3: Path, kind: str):
    exact, near = velocity(loaded(sd3, None)), velocity(loaded(sd3, kind))
    low, high = ERROR[kind]
    assert low < float((near - exact).detach().norm() / exact.detach().norm()) < high


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_a_base_with_the_dequantized_weights(sd3: Path, kind: str):
    """Against autograd through unquantized layers with the same values."""
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
def test_no_dequantized_weight_is_saved_for_the_backward_pass(sd3: Path, kind: str):
    seen: list[torch.Tensor] = []
    made = loaded(sd3, kind, "bf16")

    def see(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor

    with saved_tensors_hooks(see, lambda t: t):
        velocity(made)
    shapes = {tuple(p.shape) for n, p in loaded(sd3, None).named_parameters() if p.ndim == 2 and ".lora_" not in n}
    saved = [t for t in seen if type(t) is torch.Tensor and tuple(t.shape) in shapes | {s[::-1] for s in shapes}]
    own = {p.data_ptr() for p in made.parameters() if type(p) is torch.nn.Parameter}
    assert [t.shape for t in saved if t.is_floating_point() and t.data_ptr() not in own] == []


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
def test_autocast_and_checkpointing_work(sd3: Path, kind: str):
    made = loaded(sd3, kind, gradient_checkpointing=True)
    with torch.autocast("cpu", torch.bfloat16):
        velocity(made).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_moved_to_host_come_back_intact(sd3: Path, kind: str):
    made = loaded(sd3, kind)
    before = velocity(made)
    with moved_to_host(made.transformer):
        pass
    assert torch.equal(velocity(made), before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_lora_loads_in_diffusers(sd3: Path, kind: str, tmp_path: Path):
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


# refusals -------------------------------------------------------------------------------------------------------------


def test_an_unusable_quantization_is_refused(sd3: Path):
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


def test_without_the_option_fingerprints_do_not_change(sd3: Path):
    plain, packed = policy(sd3, None).skeleton().fingerprint(), policy(sd3, "nf4").skeleton().fingerprint()
    assert plain["lora"] == str(LoRA(rank=4, alpha=8.0))
    assert packed == plain | {"lora": f"{plain['lora']} on nf4"}
