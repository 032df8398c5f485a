"""A LoRA merged into complete weights: what diffusers loads is the base plus the change, rounded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from velocities import disturb, velocity

from guardlit.errors import GuardlitError
from guardlit.policies import LoRA
from guardlit.policies.weights.lora import trained_layers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_pipeline_has_the_merged_weights(family: str, dtype: str, tiny: Callable[[str], Path], tmp_path: Path):
    policy = FAMILIES[family].load(tiny(family), lora=LoRA(4, 8), weights_dtype=dtype)
    disturb(policy)
    before = {name: tensor.clone() for name, tensor in policy.transformer.state_dict().items()}
    policy.export(tmp_path, merged=True)
    after = policy.transformer.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    pipe = FAMILIES[family].pipeline(tmp_path, dtype=policy.weights_dtype)
    found = pipe.transformer.state_dict()
    layers = trained_layers(policy.transformer)
    plain = {n.replace(".base_layer.", "."): t for n, t in before.items() if ".lora_" not in n}
    assert found.keys() == plain.keys()
    changed = set()
    for name, tensor in plain.items():
        if (layer := layers.get(name.removesuffix(".weight"))) is not None and name.endswith(".weight"):
            down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
            exact = tensor.double() + 2 * up.double() @ down.double()
            tolerance = 1e-6 if dtype == "fp32" else 2**-8
            torch.testing.assert_close(found[name].double(), exact, rtol=tolerance, atol=1e-6, msg=name)
            changed.add(name)
        else:
            assert torch.equal(found[name], tensor), name
    assert len(changed) == FAMILIES[family].lora_layers
    if dtype == "fp32":
        own, policy.transformer = policy.transformer, pipe.transformer.eval()
        with torch.no_grad():
            drawn = velocity(policy)
            policy.transformer = own
            torch.testing.assert_close(drawn, velocity(policy), rtol=1e-4, atol=1e-4)


def test_no_configuration_names_a_folder_of_this_machine(sd3_folder: Path, tmp_path: Path):
    FAMILIES["sd3"].load(sd3_folder).export(tmp_path / "out", merged=True)
    texts = {path: path.read_text() for path in (tmp_path / "out").rglob("*.json")}
    assert len(texts) > 10
    assert [path.name for path, text in texts.items() if str(sd3_folder.parent) in text] == []
    assert any(f'"_name_or_path": "{sd3_folder.name}"' in text for text in texts.values())
    FAMILIES["sd3"].pipeline(tmp_path / "out")


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("comfyui", "--to comfyui --merged true: diffusers cannot write .* or use --to diffusers"),
        ("peft", "--to peft writes an adapter: leave --merged out, or use --to diffusers"),
    ],
)
def test_only_diffusers_takes_complete_weights(to: str, says: str, sd3_folder: Path, tmp_path: Path):
    with pytest.raises(GuardlitError, match=says):
        FAMILIES["sd3"].load(sd3_folder).export(tmp_path / "out", to, merged=True)
    assert not (tmp_path / "out").exists()


def test_a_run_in_full_is_merged_already(sd3_folder: Path, tmp_path: Path):
    policy = FAMILIES["sd3"].load(sd3_folder, lora=None)
    disturb(policy)
    policy.export(tmp_path, merged=True)
    found = FAMILIES["sd3"].pipeline(tmp_path).transformer.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in policy.transformer.state_dict().items())


def test_a_quantized_base_cannot_hold_the_sum(sd3_folder: Path, tmp_path: Path):
    pytest.importorskip("torchao", reason="torchao is not installed: the extra `quant`")
    policy = FAMILIES["sd3"].load(sd3_folder, quantization="int8", weights_dtype="bf16")
    with pytest.raises(GuardlitError, match="--merged true needs a base that is not quantized"):
        policy.export(tmp_path / "out", merged=True)
    assert not (tmp_path / "out").exists()
