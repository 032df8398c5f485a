"""What is specific to FLUX.2 klein: a shift that depends on the number of steps, and models without guidance."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS
from tiny_qwen import make_flux2_klein

from guardlit.errors import GuardlitError
from guardlit.policies import Flux2KleinPolicy, LoRA
from guardlit.rounds.noise import NoiseSource

KLEIN = FAMILIES["flux2_klein"]


@pytest.fixture(scope="module")
def folder(tiny) -> Path:
    return tiny("flux2_klein")


@pytest.mark.parametrize(("pixels", "steps"), [(256, 2), (256, 10), (512, 4), (1088, 1)])
def test_the_schedule_of_any_size_is_the_pipelines_bit_for_bit(folder: Path, pixels: int, steps: int):
    ours, pipelines = KLEIN.schedules(folder, pixels, steps)
    assert torch.equal(ours.float(), pipelines)


def test_latents_need_no_packing(folder: Path):
    assert KLEIN.load(folder).latent_shape == (16, 4, 4)  # published: 128 channels


def test_a_distilled_model_takes_no_guidance(tmp_path: Path):
    policy = KLEIN.load(make_flux2_klein(tmp_path / "distilled", is_distilled=True))
    x, sigma = NoiseSource(1, 0, policy.latent_shape).draw([0, 1], 0), torch.tensor([0.5, 0.5])
    conditioning = policy.conditioning(PROMPTS)
    assert policy.velocity(x, sigma, conditioning, 1.0).isfinite().all()
    with pytest.raises(GuardlitError, match=r"guidance_scale=4.0: .*distilled model; set model.rollout.gui") as caught:
        policy.velocity(x, sigma, conditioning, 4.0)
    assert "\n" not in str(caught.value)


def test_defaults_are_the_published_ones():
    parameters = inspect.signature(Flux2KleinPolicy).parameters
    assert parameters["lora"].default == LoRA(16, 32)
    assert parameters["max_sequence_length"].default == 512
