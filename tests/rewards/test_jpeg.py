"""JPEG size as a reward."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from guardlit.rewards import JPEGCompressibility
from guardlit.types import RewardRequest

NOISE = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
REQUEST = RewardRequest(torch.stack([NOISE, torch.full_like(NOISE, 90)]), ["a", "b"], [{}, {}])


def test_score_is_the_size_of_the_file(tmp_path):
    path = tmp_path / "noise.jpg"
    Image.fromarray(np.ascontiguousarray(np.moveaxis(NOISE.numpy(), 0, -1))).save(path, quality=95)
    assert Image.open(io.BytesIO(path.read_bytes())).size == (96, 64)
    result = JPEGCompressibility().score(REQUEST)
    assert result.values[0].item() == pytest.approx(-path.stat().st_size / 1000 / 500)
    assert result.values[1] > result.values[0]
    assert result.valid.all()


def test_incompressibility_is_the_opposite():
    rough, smooth = JPEGCompressibility(incompressible=True), JPEGCompressibility()
    assert torch.equal(rough.score(REQUEST).values, -smooth.score(REQUEST).values)
    assert (rough.name, smooth.name) == ("jpeg_incompressibility", "jpeg_compressibility")
