"""Skeletons: the shapes and bytes of the loaded policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, SIDE

from guardlit.policies import LoRA


@pytest.mark.parametrize("lora", [LoRA(4, 8), None], ids=["lora", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_skeleton_has_the_shapes_of_the_policy(name: str, lora: LoRA | None, tiny):
    family = FAMILIES[name]
    options = {"lora": lora, "weights_dtype": "bf16", "reference": True}
    real = family.load(tiny(name), **options)
    mine = family.policy(str(tiny(name)), SIDE, max_sequence_length=family.length, cache=real.cache, **options)
    skeleton = mine.skeleton()
    assert mine.transformer is None  # unchanged
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert skeleton.footprint() == real.footprint()
    assert skeleton.latent_shape == real.latent_shape
    assert torch.equal(skeleton.sigmas(4), real.sigmas(4))
    wanted, found = real.conditioning(["a cat"]), skeleton.conditioning(["a cat"])
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}
    latents, sigma = torch.empty(2, *skeleton.latent_shape, device="meta"), torch.empty(2, device="meta")
    for weights in ("policy", "old", "reference"):
        with skeleton.using(weights):
            velocity = skeleton.velocity(latents, sigma, skeleton.conditioning(["a cat", "a dog"]), 1.0)
        assert velocity.shape == latents.shape
    assert skeleton.decode(latents).shape == (2, 3, SIDE, SIDE)


def test_the_footprint_of_weights_is_their_bytes(sd3_folder: Path):
    real = FAMILIES["sd3"].load(sd3_folder)
    found = real.footprint()
    names = dict(real.named_parameters())
    size = {kind: sum(p.numel() * 4 for n, p in names.items() if kind in n) for kind in (".default.", ".old.")}
    assert (found.trained, found.copies) == (size[".default."], size[".old."])
    everything = sum(t.numel() * 4 for t in [*names.values(), *real.buffers()])
    assert found.frozen + found.buffers == everything - found.trained - found.copies
