"""What is specific to Stable Diffusion 3; `test_policies.py` tests what all families have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS
from velocities import disturb, velocity

from guardlit.errors import GuardlitError
from guardlit.policies import LoRA, SD3Policy
from guardlit.policies.folders.embeddings import EmbeddingCache
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.rollout import sample
from guardlit.sde import FlowSDE

load = FAMILIES["sd3"].load


@pytest.fixture
def policy(sd3_folder: Path) -> SD3Policy:
    torch.manual_seed(0)
    return load(sd3_folder)


def test_recorded_steps_replay(policy: SD3Policy):
    c = FlowSDE(0.7).coefficients(policy.sigmas(5))
    noise = NoiseSource(0, 0, policy.latent_shape)
    trajectory = sample(
        policy, c, policy.conditioning(PROMPTS), noise, [0, 1], 1.0, record=torch.arange(4).expand(2, -1)
    )
    assert trajectory.latents.shape == trajectory.velocity.shape == (2, 4, *policy.latent_shape)
    for step in range(3):
        x, v = trajectory.latents[:, step], trajectory.velocity[:, step]
        expected = c.sample[step] * x + c.velocity[step] * v + c.std[step] * noise.draw([0, 1], step)
        torch.testing.assert_close(trajectory.latents[:, step + 1], expected.float(), rtol=1e-5, atol=1e-5)


def test_autocast_never_reuses_casts_of_another_weight_set(sd3_folder: Path):
    policy = load(sd3_folder, lora=None)
    with torch.autocast("cpu", torch.bfloat16):
        before = velocity(policy).detach()
        disturb(policy)
        with policy.using("old"):
            assert torch.equal(velocity(policy), before)
        assert not torch.equal(velocity(policy), before)


def test_the_second_attention_has_no_adapter(policy: SD3Policy):
    trained = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert trained
    assert all(".attn." in n for n in trained)  # not attn2


def test_a_checkpoint_of_guardlit_0_1_fits(policy: SD3Policy):
    """Parameter names of saved checkpoints."""
    names = [n for n, p in policy.named_parameters() if p.requires_grad]
    assert names[0] == "transformer.transformer_blocks.0.attn.to_q.lora_A.default.weight"
    assert {k: v for k, v in policy.fingerprint().items() if k != "transformer config"} == {
        "policy": "SD3Policy",
        "lora": "LoRA(rank=4, alpha=8, targets=None, init='gaussian')",
        "resolution": "64",
    }
    settings = "(16, True, torch.float32)"
    assert policy._embeddings._key.startswith("StableDiffusion3Pipeline:")
    assert policy._embeddings._key.endswith(f":{settings}")


def test_without_t5_its_embeddings_are_zeros(sd3_folder: Path):
    embeds = load(sd3_folder, text_encoder_3=False).conditioning(["a cat"])["prompt_embeds"]
    assert not bool(embeds[:, 77:].any())
    assert bool(embeds[:, :77].any())


def test_a_scheduler_that_shifts_by_size_is_refused(policy: SD3Policy):
    policy._outside["scheduler"].register_to_config(use_dynamic_shifting=True)
    with pytest.raises(GuardlitError, match="asks for dynamic shifting, which StableDiffusion3Pipeline models"):
        policy.sigmas(4)


def test_options_can_be_positional(sd3_folder: Path):
    policy = SD3Policy(str(sd3_folder), 32, LoRA(2, 4), "bf16", True, 8)
    assert (policy.resolution, policy.lora, policy.weights_dtype) == (32, LoRA(2, 4), torch.bfloat16)
    assert (policy.gradient_checkpointing, policy.max_sequence_length) == (True, 8)


def test_a_corrupt_cache_entry_is_encoded_again(tmp_path: Path):
    cache = EmbeddingCache("key", tmp_path)
    cache.add(["a"], {"x": torch.ones(1, 3)})
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(b"rubbish")
    fresh = EmbeddingCache("key", tmp_path)
    assert fresh.missing(["a"]) == ["a"]
    with pytest.raises(KeyError, match="never encoded"):
        fresh.get(["a"])


def test_a_full_memory_falls_back_to_disk(tmp_path: Path):
    cache = EmbeddingCache("key", tmp_path, capacity=1)
    cache.add(["a", "b"], {"x": torch.tensor([[1.0], [2.0]])})
    assert cache.missing(["a", "b"]) == []
    assert cache.get(["b", "a"])["x"].tolist() == [[2.0], [1.0]]
