"""LoRA files of other trainers: each is applied exactly, against a merge in float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from lora_files import RANK, Made, check, diffusers_header, peft_folder
from velocities import velocity

from guardlit.policies import DiffusersPolicy

SD3_LAYERS = [f"transformer_blocks.{i}.attn.{name}" for i in (0, 1) for name in ("to_q", "to_out.0", "add_k_proj")]
FLUX_LAYERS = [
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.0.ff.net.2",
    "single_transformer_blocks.0.proj_out",
]


@pytest.fixture(scope="module", params=["sd3", "flux"])
def policy(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> DiffusersPolicy:
    return FAMILIES[request.param].load(tiny(request.param))


@pytest.fixture(scope="module")
def sd3(tiny: Callable[[str], Path]) -> DiffusersPolicy:
    return FAMILIES["sd3"].load(tiny("sd3"))


def layers(policy: DiffusersPolicy) -> list[str]:
    return SD3_LAYERS if type(policy).__name__ == "SD3Policy" else FLUX_LAYERS


@pytest.fixture
def made(policy: DiffusersPolicy) -> Made:
    return Made(policy.transformer)


# scales ---------------------------------------------------------------------------------------------------------------


def test_alpha_tensors(policy: DiffusersPolicy, made: Made, tmp_path: Path):
    for alpha, layer in zip((8.0, 2.0, 4.0, 1.0, 16.0, 3.0), layers(policy), strict=False):
        made.plain(layer, alpha / RANK, alpha=torch.tensor(alpha))
    check(policy, made, made.save(tmp_path))


@pytest.mark.parametrize("names", ["lora_down lora_up", "lora.down lora.up"])
def test_alpha_tensors_with_old_names(policy: DiffusersPolicy, made: Made, tmp_path: Path, names: str):
    for layer in layers(policy):
        made.plain(layer, 2.0, names=names, alpha=torch.tensor(8.0, dtype=torch.bfloat16))
    check(policy, made, made.save(tmp_path))


@pytest.mark.parametrize(
    "header",
    [
        {"lora_alpha": "8", "r": "4"},
        {"alpha": "8.0", "rank": "4", "format": "pt"},
        {"lora_config": json.dumps({"r": 4, "lora_alpha": 8, "peft_type": "LORA"})},
        diffusers_header(r=4, lora_alpha=8),
    ],
    ids=["plain", "plain, other names", "JSON of peft", "diffusers"],
)
def test_alpha_in_the_header(policy: DiffusersPolicy, made: Made, tmp_path: Path, header: dict[str, str]):
    for layer in layers(policy):
        made.plain(layer, 2.0)
    check(policy, made, made.save(tmp_path, header))


def test_ranks_alphas_and_rslora_by_pattern(policy: DiffusersPolicy, made: Made, tmp_path: Path):
    first, second, *others = layers(policy)
    made.plain(first, 6 / math.sqrt(2), rank=2)
    made.plain(second, 10 / math.sqrt(RANK))
    for layer in others:
        made.plain(layer, 8 / math.sqrt(RANK))
    patterns = {"rank_pattern": {first: 2}, "alpha_pattern": {f"^{second}": 10, first: 6}}
    check(policy, made, made.save(tmp_path, diffusers_header(r=RANK, lora_alpha=8, use_rslora=True, **patterns)))


def test_no_alpha_at_all_is_a_scale_of_1(policy: DiffusersPolicy, made: Made, tmp_path: Path):
    for layer in layers(policy):
        made.plain(layer, 1.0)
    check(policy, made, made.save(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(policy: DiffusersPolicy, made: Made, tmp_path: Path, dtype: torch.dtype):
    for layer in layers(policy):
        made.plain(layer, 1.0)
        down, up = (made.tensors[f"transformer.{layer}.lora_{half}.weight"].to(dtype) for half in "AB")
        made.put(f"transformer.{layer}", down, up)
        made.expect(layer, down, up, 1.0)
    check(policy, made, made.save(tmp_path))


# names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["base_model.model.", "", "base_model.model.transformer."])
def test_a_peft_folder(policy: DiffusersPolicy, made: Made, tmp_path: Path, prefix: str):
    """flow_grpo's checkpoints, among others."""
    for layer in layers(policy):
        made.plain(layer, 2.0, prefix=prefix)
    check(policy, made, peft_folder(made, tmp_path / "checkpoint-120" / "lora"))
    check(policy, made, tmp_path / "checkpoint-120")


def test_a_peft_state_dict_with_the_adapters_name(policy: DiffusersPolicy, made: Made, tmp_path: Path):
    for layer in layers(policy):
        made.plain(layer, 1.0, prefix="base_model.model.", names="lora_A.default lora_B.default")
    check(policy, made, made.save(tmp_path))


@pytest.mark.parametrize("names", ["lora_A lora_B", "lora_down lora_up"])
def test_comfyui(policy: DiffusersPolicy, made: Made, tmp_path: Path, names: str):
    for layer in layers(policy):
        made.plain(layer, 1.0, prefix="diffusion_model.", names=names)
    check(policy, made, made.save(tmp_path))


def test_kohya_with_diffusers_names(policy: DiffusersPolicy, made: Made, tmp_path: Path):
    for layer in layers(policy):
        base = made.weight(layer)
        down, up = made.pair(layer, base.shape[1], len(base))
        key = f"lora_transformer_{layer.replace('.', '_')}"
        made.put(key, down, up, "lora_down lora_up", alpha=torch.tensor(1.0))
        made.expect(layer, down, up, 1 / RANK)
    check(policy, made, made.save(tmp_path))
    file = tmp_path / "pytorch_lora_weights.safetensors"
    check(policy, made, file)  # a file by itself


# DoRA, biases, other layers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [{}, diffusers_header(r=4, lora_alpha=8, use_dora=True)], ids=["bare", "header"])
def test_dora_of_peft(policy: DiffusersPolicy, made: Made, tmp_path: Path, header: dict[str, str]):
    """m (W + scale B A) / norm, with norms over the inputs."""
    scale = 2.0 if header else 1.0
    for layer in layers(policy):
        made.plain(layer, scale)
        magnitude = 0.5 + torch.rand(len(made.weight(layer)), generator=torch.Generator().manual_seed(3))
        made.tensors[f"transformer.{layer}.lora_magnitude_vector"] = magnitude
        total = made.weights[layer]
        made.weights[layer] = magnitude.double()[:, None] * total / total.norm(dim=1, keepdim=True)
    check(policy, made, made.save(tmp_path, header))


def test_biases_of_b_are_scaled_as_b(policy: DiffusersPolicy, made: Made, tmp_path: Path):
    first, *others = layers(policy)
    for layer in [first, *others]:
        made.plain(layer, 2.0, prefix="base_model.model.")
    bias = torch.linspace(-1, 1, len(made.weight(first)))
    made.tensors[f"base_model.model.{first}.lora_B.bias"] = bias
    made.biases[first] = policy.transformer.get_submodule(first).bias.detach().double() + 2 * bias.double()
    check(policy, made, peft_folder(made, tmp_path, lora_bias=True))


def test_every_linear_and_convolutional_layer(policy: DiffusersPolicy, made: Made, tmp_path: Path):
    """The policies train attention only; other trainers change all layers."""
    from guardlit.policies.weights.lora_layers import _base_layers

    for layer in _base_layers(policy.transformer):
        base = made.weight(layer)
        down, up = made.pair(layer, base[0].numel(), len(base))
        shape = (RANK, *base.shape[1:])
        made.put(f"transformer.{layer}", down.reshape(shape), up.reshape(*up.shape, *(1,) * (base.ndim - 2)))
        made.expect(layer, down, up, 1.0)
    assert len(made.weights) > 25
    check(policy, made, made.save(tmp_path))


def test_layers_outside_our_targets_merge_too(sd3: DiffusersPolicy, tmp_path: Path):
    """Within `merged`, plain updates are in the weights and others stay adapters; the velocity is the same."""
    made = Made(sd3.transformer)
    for layer in ("transformer_blocks.0.norm1.linear", "transformer_blocks.0.attn2.to_q", "proj_out"):
        made.plain(layer, 1.0)
    check(sd3, made, made.save(tmp_path))
    with sd3.exported(tmp_path):
        separate = velocity(sd3)
        with sd3.merged():
            torch.testing.assert_close(velocity(sd3), separate, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(sd3.transformer.proj_out.weight.double(), made.weights["proj_out"])
