"""What is specific to Qwen-Image: masked prompts, renormalized guidance, layers that do not affect the image."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from families import FAMILIES, PROMPTS
from tiny_qwen import TEMPLATE, tokenizer

from guardlit.policies import LoRA, QwenImagePolicy
from guardlit.policies.packing import pack
from guardlit.rounds.noise import NoiseSource

QWEN = FAMILIES["qwen_image"]


@pytest.fixture(scope="module")
def policy(tiny) -> QwenImagePolicy:
    return QWEN.load(tiny("qwen_image"))


def _at(policy: QwenImagePolicy) -> tuple[torch.Tensor, torch.Tensor]:
    return NoiseSource(1, 0, policy.latent_shape).draw([0, 1], 0), torch.tensor([0.9, 0.4])


def test_the_tiny_template_is_as_long_as_the_published_one():
    """The pipeline cuts 34 tokens; with another length, embeddings would hold a part of the template."""
    assert len(tokenizer()(TEMPLATE).input_ids) == 34


def test_prompts_are_padded_under_a_mask(policy: QwenImagePolicy, tiny):
    table = policy.conditioning(PROMPTS)
    assert table["mask"].dtype == torch.bool
    assert table["prompt_embeds"].shape == (2, QWEN.length, 16)
    assert table["mask"].sum(1).tolist() == [2 + 5, 6 + 5]  # the prompt, and the end of the turn
    assert not bool(table["prompt_embeds"][~table["mask"]].any())
    pipe = QWEN.pipeline(tiny("qwen_image"))
    embeds, mask = pipe.encode_prompt(PROMPTS)
    assert mask.sum(1).tolist() == [7, 11]
    torch.testing.assert_close(table["prompt_embeds"][:, :11], embeds, rtol=1e-5, atol=1e-5)


def test_masked_tokens_change_nothing(policy: QwenImagePolicy):
    x, sigma = _at(policy)
    table = policy.conditioning(PROMPTS)
    noisy = torch.where(table["mask"][..., None], table["prompt_embeds"], torch.randn_like(table["prompt_embeds"]))
    expected = policy.velocity(x, sigma, table, 1.0)
    assert torch.equal(policy.velocity(x, sigma, {**table, "prompt_embeds": noisy}, 1.0), expected)
    everything = {**table, "prompt_embeds": noisy, "mask": torch.ones_like(table["mask"])}
    assert float((policy.velocity(x, sigma, everything, 1.0) - expected).abs().max()) > 1e-3


def test_an_embedding_does_not_depend_on_the_other_prompts(tiny):
    """A resumed run encodes in other batches, and must get the same bits."""
    alone = QWEN.load(tiny("qwen_image"), cache=None)
    alone.encode(["a red car"])
    among = QWEN.load(tiny("qwen_image"), cache=None)
    among.encode(["a red car", "a photo of the sky and the sea with three white birds"])
    a, b = (p.conditioning(["a red car"]) for p in (alone, among))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_long_prompts_are_cut(policy: QwenImagePolicy):
    policy.encode(["the cat and the dog " * 20])
    assert bool(policy.conditioning(["the cat and the dog " * 20])["mask"].all())


def test_guidance_keeps_the_norm_of_every_token(policy: QwenImagePolicy):
    x, sigma = _at(policy)
    table = policy.conditioning(PROMPTS)
    plain, guided = (pack(policy.velocity(x, sigma, table, scale)) for scale in (1.0, 4.0))
    torch.testing.assert_close(guided.norm(dim=-1), plain.norm(dim=-1), rtol=1e-4, atol=1e-5)
    assert float((guided - plain).abs().max()) > 1e-3


def test_the_schedule_ends_at_the_published_0_02(policy: QwenImagePolicy):
    sigmas = policy.sigmas(10)
    assert sigmas[0] == 1
    assert sigmas[-2:].tolist() == pytest.approx([0.02, 0.0], abs=1e-6)


def test_layers_of_the_unused_text_output_do_not_train(policy: QwenImagePolicy, tiny):
    idle = ("transformer_blocks.1.attn.to_add_out", "transformer_blocks.1.txt_mlp.")
    full = QWEN.load(tiny("qwen_image"), lora=None)
    for one in (policy, full):
        trained = [n for n, p in one.named_parameters() if p.requires_grad]
        assert any("transformer_blocks.0.txt_mlp" in n for n in trained)
        assert not any(part in n for n in trained for part in idle)


def test_the_default_adapter_is_flow_grpos():
    assert inspect.signature(QwenImagePolicy).parameters["lora"].default == LoRA(64, 128)


def test_configured_targets(tiny):
    own = QWEN.load(Path(tiny("qwen_image")), lora=LoRA(4, 8, ("attn.to_q",)))
    assert len([n for n, p in own.named_parameters() if p.requires_grad]) == 2 * 2
