"""LoRAs of other trainers as rows of the table: found as files and folders, identified by all that they depend on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from guardlit.errors import GuardlitError
from guardlit.gold.models import Model, find_models


def row(place: Path) -> Model:
    _, model = find_models([str(place)], [], "ema", place)
    return model


def peft(folder: Path, alpha: int) -> Path:
    """A folder as flow_grpo leaves it, with the weights in `lora/`."""
    (folder / "lora").mkdir(parents=True)
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2)}, folder / "lora/adapter_model.safetensors")
    (folder / "lora/adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": alpha}))
    return folder


def test_a_peft_folder_is_identified_by_its_alpha_too(tmp_path: Path):
    one, same, other = (peft(tmp_path / str(i), alpha) for i, alpha in enumerate((8, 8, 16)))
    assert row(one).sha256 == row(same).sha256 != row(other).sha256
    assert (row(one).kind, row(one).path) == ("exported", str(one))
    assert row(one / "lora").sha256 == row(one).sha256
    assert row(one / "lora/adapter_model.safetensors").sha256 == row(one).sha256


def test_a_file_is_a_row_with_its_name(tmp_path: Path):
    save_file({"x.lora_A.weight": torch.ones(2)}, tmp_path / "watercolor.safetensors")
    model = row(tmp_path / "watercolor.safetensors")
    assert (model.label, model.kind) == ("watercolor", "exported")
    assert row(tmp_path).sha256 == model.sha256
    with pytest.raises(GuardlitError, match="a folder of exported weights, or a LoRA file"):
        row(tmp_path / "oil.safetensors")
