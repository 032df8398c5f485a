"""Features of DINO folders against transformers' own classes, image by image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_folders import make_clip, make_dino
from transformers import AutoModel, BitImageProcessor, DINOv3ViTImageProcessor

from guardlit.errors import GuardlitError
from guardlit.rewards import DINO
from guardlit.rewards.network import Placement
from guardlit.types import RewardRequest

CPU = torch.device("cpu")
PROCESSORS = {"dinov2": BitImageProcessor, "dinov3_vit": DINOv3ViTImageProcessor}
REGISTERS = {"dinov2": 0, "dinov3_vit": 4}


def asked(count: int = 5) -> RewardRequest:
    """Blocks of random colors, 48 x 64 pixels, of different sizes."""
    generator, images = np.random.default_rng(0), []
    for i in range(count):
        cells = generator.integers(0, 256, (3, 3 + i, 4), dtype=np.uint8)
        images.append(np.asarray(Image.fromarray(cells.transpose(1, 2, 0)).resize((64, 48), 0)).transpose(2, 0, 1))
    return RewardRequest(torch.from_numpy(np.stack(images)), ["a"] * count, [{}] * count)


def ready(folder: Path, **init: object) -> DINO:
    scorer = DINO(str(folder), **init)
    scorer.setup(CPU)
    return scorer


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("pooling", ["class", "patches"])
def test_features_are_the_network_s_output(kind: str, pooling: str, tmp_path: Path):
    folder = make_dino(tmp_path, kind=kind)
    result = ready(folder, pooling=pooling).score(asked())
    network, processor = AutoModel.from_pretrained(folder).eval(), PROCESSORS[kind].from_pretrained(folder)
    for image, features, value in zip(asked().images, result.features, result.values, strict=True):
        pixels = processor(images=Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")
        with torch.no_grad():
            out = network(**pixels)
        patches = out.last_hidden_state[0, 1 + REGISTERS[kind] :].double().numpy()
        expected = out.pooler_output[0].double().numpy() if pooling == "class" else patches.mean(0)
        np.testing.assert_allclose(features.numpy(), expected, rtol=1e-4, atol=1e-5)
        units = patches / np.linalg.norm(patches, axis=1, keepdims=True)
        assert float(value) == pytest.approx(1 - np.linalg.norm(units.mean(0)), rel=1e-4)


def test_batches_do_not_matter(tmp_path: Path):
    folder = make_dino(tmp_path)
    whole, small = ready(folder).score(asked()), ready(folder, placement=Placement(batch_size=2)).score(asked())
    torch.testing.assert_close(small.features, whole.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.values, whole.values, rtol=1e-4, atol=1e-5)


def test_weights_are_known_before_they_are_loaded(tmp_path: Path):
    folder = make_dino(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    assert DINO(str(folder)).weight_bytes() == sum(4 * t.numel() for t in tensors.values())
    assert DINO(str(tmp_path / "none")).weight_bytes() is None


def test_what_is_no_dino_is_refused(tmp_path: Path):
    with pytest.raises(GuardlitError, match=r"not a DINO model, its config.json says model_type 'clip'; one of dinov2"):
        ready(make_clip(tmp_path))
    with pytest.raises(GuardlitError, match=r"there is no .*nothing; a DINO folder is needed here"):
        ready(tmp_path / "nothing")


def test_missing_weights_are_named(tmp_path: Path):
    folder = make_dino(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if k != "layernorm.bias"}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(GuardlitError, match=r"1 weights missing \(layernorm.bias\)"):
        ready(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "dinov2"
