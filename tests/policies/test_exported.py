"""Exported weights in place of the trained ones: a policy's own exports and other LoRAs of the same model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from velocities import disturb

from guardlit.errors import GuardlitError
from guardlit.policies import LoRA, SD3Policy
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.rollout import sample
from guardlit.sde import ODE

FILE = "pytorch_lora_weights.safetensors"

load = FAMILIES["sd3"].load


def draw(policy: SD3Policy) -> Tensor:
    noise = NoiseSource(0, 0, policy.latent_shape)
    coefficients = ODE().coefficients(policy.sigmas(2))
    return sample(policy, coefficients, policy.conditioning(PROMPTS), noise, [0, 1], 1.0).final


def state(policy: SD3Policy) -> dict[str, tuple[bool, Tensor]]:
    return {name: (p.requires_grad, p.detach().clone()) for name, p in policy.named_parameters()}


def unchanged(policy: SD3Policy, before: dict[str, tuple[bool, Tensor]]) -> bool:
    after = state(policy)
    return before.keys() == after.keys() and all(
        flag == after[name][0] and torch.equal(value, after[name][1]) for name, (flag, value) in before.items()
    )


@pytest.mark.parametrize(
    "options", [{}, {"weights_dtype": "bf16"}, {"lora": None}], ids=["lora", "lora on bf16", "full"]
)
def test_an_export_gives_the_policys_images(sd3_folder: Path, tmp_path: Path, options: dict):
    policy = load(sd3_folder, **options)
    base, before = draw(policy), state(policy)
    trained = load(sd3_folder, **options)
    disturb(trained)
    trained.export(tmp_path / "export")
    with policy.exported(tmp_path / "export"):
        assert torch.equal(draw(policy), draw(trained))
    assert not torch.equal(draw(trained), base)
    assert torch.equal(draw(policy), base)
    assert unchanged(policy, before)


@pytest.mark.parametrize("lora", [LoRA(2, 2), None], ids=["with another LoRA", "full"])
def test_a_lora_of_another_rank_and_scale_gives_the_pipelines_velocity(
    sd3_folder: Path, tmp_path: Path, lora: LoRA | None
):
    from diffusers import StableDiffusion3Pipeline

    other = load(sd3_folder, lora=LoRA(5, 20, targets=("attn.to_q", "attn.to_v")))
    disturb(other)
    other.export(tmp_path)
    policy = load(sd3_folder, lora=lora)
    before = state(policy)
    noise = NoiseSource(0, 0, policy.latent_shape).draw([0, 1], -1)
    with policy.exported(tmp_path):
        ours = draw(policy)
    assert unchanged(policy, before)
    pipe = StableDiffusion3Pipeline.from_pretrained(sd3_folder, local_files_only=True)
    pipe.load_lora_weights(tmp_path)
    size = {"height": 64, "width": 64, "max_sequence_length": 16}
    options = {"num_inference_steps": 2, "guidance_scale": 1.0, "latents": noise, "output_type": "latent"}
    theirs = pipe(PROMPTS, **options, **size).images
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture
def lora_folder(sd3_folder: Path, tmp_path: Path) -> Path:
    policy = load(sd3_folder)
    disturb(policy)
    policy.export(tmp_path / "lora")
    return tmp_path / "lora"


def _change(folder: Path, change: Callable[[dict[str, Tensor]], object], header: dict[str, str] | None = None) -> None:
    with safe_open(folder / FILE, framework="pt") as file:
        before = file.metadata()
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE, {**before, **(header or {})})


def _cut(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-100])


def _two(folder: Path) -> None:
    (folder / FILE).rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")


def _pickle(folder: Path) -> None:
    (folder / FILE).rename(folder / "adapter_model.bin")


def _peft(folder: Path, **settings: object) -> None:
    _change(folder, lambda t: None, {"lora_adapter_metadata": "{}"})
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, **settings}))


def _add(folder: Path, key: str, tensor: Tensor | None = None) -> None:
    _change(folder, lambda t: t.update({key: torch.ones(4) if tensor is None else tensor}))


def _set(folder: Path, values: float) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{QUERY}.lora_B.weight"][3, 1] = values

    _change(folder, change)


QUERY = "transformer.transformer_blocks.0.attn.to_q"
PAIR = {"lora_A.weight": torch.ones(4, 32), "lora_B.weight": torch.ones(32, 4)}
DEEP = "lora_unet_joint_blocks_9_x_block_attn_proj"


def _deeper(folder: Path, name: str, *halves: str) -> None:
    _change(folder, lambda t: t.update({f"{name}.{half}": PAIR[part] for half, part in zip(halves, PAIR, strict=True)}))


FAULTS = {
    "empty": (lambda f: (f / FILE).unlink(), "holds no safetensors file; a LoRA is one file"),
    "two": (_two, "holds a.safetensors, b.safetensors; a LoRA is one file"),
    "pickle": (_pickle, "holds no safetensors file; .* convert adapter_model.bin, a pickle, to safetensors first"),
    "truncated": (_cut, "cannot be read as a safetensors file"),
    "no tensors": (lambda f: _change(f, lambda t: t.clear()), "it holds no tensors"),
    "text encoder": (
        lambda f: _add(f, "text_encoder.layer.lora_A.weight"),
        r"also changes text encoders \('text_encoder.layer.lora_A.weight'\), .* remove these tensors from the file",
    ),
    "text encoder of kohya": (
        lambda f: _add(f, "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"),
        r"also changes text encoders \('lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight'\)",
    ),
    "another layer": (
        lambda f: _deeper(f, "transformer.nowhere", "lora_A.weight", "lora_B.weight"),
        "'transformer.nowhere.lora_A.weight' has no place in this SD3Transformer2DModel$",
    ),
    "deeper": (
        lambda f: _deeper(f, "transformer.transformer_blocks.23.attn.to_q", "lora_A.weight", "lora_B.weight"),
        "is for block 23 of transformer_blocks, and this SD3Transformer2DModel has 2: a LoRA of a deeper model",
    ),
    "deeper, kohya": (
        lambda f: _deeper(f, DEEP, "lora_down.weight", "lora_up.weight"),
        f"'{DEEP}.lora_down.weight' is for block 9 of joint_blocks, and this SD3Transformer2DModel has 2",
    ),
    "no B": (
        lambda f: _change(f, lambda t: t.pop(f"{QUERY}.lora_B.weight")),
        f"'{QUERY}.lora_A.weight': one of lora_A and lora_B is missing",
    ),
    "no A": (
        lambda f: _change(f, lambda t: t.pop(f"{QUERY}.lora_A.weight")),
        f"'{QUERY}.lora_B.weight': one of lora_A and lora_B is missing",
    ),
    "NaN": (lambda f: _set(f, float("nan")), f"'{QUERY}.lora_B.weight': NaN or infinite numbers"),
    "infinite": (lambda f: _set(f, float("-inf")), f"'{QUERY}.lora_B.weight': NaN or infinite numbers"),
    "integers": (
        lambda f: _add(f, f"{QUERY}.lora_A.weight", torch.ones(4, 32, dtype=torch.int8)),
        f"'{QUERY}.lora_A.weight': not floating-point numbers",
    ),
    "another width": (
        lambda f: _add(f, f"{QUERY}.lora_A.weight", torch.ones(4, 96)),
        rf"'{QUERY}.lora_A.weight' has shape \(4, 96\), and layer .*to_q takes \(4, 32\)",
    ),
    "another rank": (
        lambda f: _add(f, f"{QUERY}.lora_B.weight", torch.ones(32, 3)),
        rf"'{QUERY}.lora_B.weight' has shape \(32, 3\), and layer .*to_q takes \(32, 4\)",
    ),
    "two of one layer": (
        lambda f: _deeper(f, "lora_transformer_transformer_blocks_0_attn_to_q", "lora_down.weight", "lora_up.weight"),
        "is a second update of layer transformer_blocks.0.attn.to_q",
    ),
    "LoKr": (lambda f: _add(f, f"{QUERY}.lokr_w1"), rf"it is or holds a LoKr \('{QUERY}.lokr_w1'\)"),
    "LoHa": (
        lambda f: _change(f, lambda t: [t.clear(), t.update({"lora_unet_x.hada_w1_a": torch.ones(4)})]),
        r"it is or holds a LoHa \('lora_unet_x.hada_w1_a'\)",
    ),
    "dora_scale": (lambda f: _add(f, f"{QUERY}.dora_scale"), rf"holds a DoRA in LyCORIS's form.*'{QUERY}.dora_scale'"),
    "control": (lambda f: _add(f, "double_blocks.0.img_attn.norm.key_norm.scale"), "norm weights of a control LoRA"),
    "differences": (lambda f: _add(f, "diffusion_model.norm.diff_b"), "differences of complete tensors"),
    "unknown": (lambda f: _add(f, "something"), "'something': not a tensor that a LoRA should contain"),
    "half a DoRA": (
        lambda f: _add(f, f"{QUERY}.lora_magnitude_vector", torch.ones(32)),
        "a DoRA without lora_magnitude_vector for .* and 12 more",
    ),
    "DoRA without magnitudes": (lambda f: _peft(f, use_dora=True), "use_dora, and '.*' has no magnitude"),
    "rank of the header": (lambda f: _peft(f, r=8), "its settings disagree|give '.*' rank 8, .* have rank 4"),
    "two alphas": (
        lambda f: [_peft(f), _add(f, f"{QUERY}.alpha", torch.tensor(2.0))],
        "alpha of 'transformer_blocks.0.attn.to_q' is 2 in its tensor and 8 in its settings",
    ),
    "no alpha": (lambda f: _peft(f, lora_alpha=None), "its settings give no lora_alpha"),
    "PiSSA": (lambda f: _peft(f, init_lora_weights="pissa"), "init_lora_weights=pissa, which changes the base"),
    "LoHa of peft": (lambda f: _peft(f, peft_type="LOHA"), "it is a LOHA adapter of peft, not a LoRA"),
    "biases of the base": (lambda f: _peft(f, bias="all"), "it was trained with bias=all"),
    "complete modules": (
        lambda f: _peft(f, modules_to_save=["proj_out"]),
        "its setting modules_to_save=.* is not supp",
    ),
    "bad header": (
        lambda f: _change(f, lambda t: None, {"lora_adapter_metadata": "{", "guardlit": "{}"}),
        "the entry 'lora_adapter_metadata' of its header is no JSON",
    ),
    "bad number": (
        lambda f: _change(f, lambda t: None, {"lora_adapter_metadata": "{}", "lora_alpha": "much"}),
        "the entry 'lora_alpha' of its header is 'much', not a number",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_lora_is_named(sd3_folder: Path, lora_folder: Path, fault: str):
    policy = load(sd3_folder)
    before = state(policy)
    change, says = FAULTS[fault]
    change(lora_folder)
    with pytest.raises(GuardlitError, match=says) as error, policy.exported(lora_folder):
        raise AssertionError("was taken")
    assert str(lora_folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert unchanged(policy, before)
    draw(policy)


def test_a_pipeline_folder_is_not_a_lora(sd3_folder: Path):
    policy = load(sd3_folder)
    with pytest.raises(GuardlitError, match="is a whole pipeline and this configuration trains a LoRA"):
        policy.exported(sd3_folder).__enter__()


def test_a_transformer_of_another_size_is_refused(sd3_folder: Path, tmp_path: Path):
    from tiny_folders import make_sd3

    with pytest.raises(GuardlitError, match="its transformer has other layers than"):
        load(sd3_folder, lora=None).exported(make_sd3(tmp_path, pos_embed_max_size=16)).__enter__()


def test_the_source_works_before_loading_and_depends_on_the_files(sd3_folder: Path, tmp_path: Path):
    copy = Path(shutil.copytree(sd3_folder, tmp_path / "copy"))
    policy = SD3Policy(str(copy), resolution=64)
    before = policy.source()
    assert policy.transformer is None
    assert before["files"] == SD3Policy(str(sd3_folder), resolution=64).source()["files"]
    assert before != SD3Policy(str(copy), resolution=32).source()
    weights = next(copy.glob("vae/*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert policy.source()["files"] != before["files"]
