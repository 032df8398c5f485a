"""Tiny folders of the families whose prompts a Qwen language model reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from tiny_folders import WORDS

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
"""What QwenImagePipeline puts before a prompt, to cut its 34 tokens out of the embeddings again."""
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def tokenizer() -> Any:
    """Byte-level BPE in Qwen's layout, in which every word of the template and of the vocabulary is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = Qwen2Tokenizer()._tokenizer.pre_tokenizer
    plain = re.sub(r"<[^>]*>", " ", TEMPLATE)
    corpus = [plain, plain, "user\n\n", "system", "assistant", "think", *WORDS, *(f" {word}" for word in WORDS)] * 2
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(initial_alphabet=sorted(alphabet), show_progress=False))
    model = json.loads(bpe.to_str())["model"]
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Qwen2Tokenizer(
        vocab=model["vocab"] | {token: len(model["vocab"]) + i for i, token in enumerate(special)},
        merges=[tuple(pair) for pair in model["merges"]],
        additional_special_tokens=special[1:],
        chat_template=CHAT,
    )


def make_qwen_image(folder: Path, *, seed: int = 0) -> Path:
    """A `QwenImagePipeline` folder with all five components."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    words = tokenizer()
    text = {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = QwenImagePipeline(
            transformer=QwenImageTransformer2DModel(
                in_channels=64,
                num_layers=2,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=16,
                axes_dims_rope=(4, 6, 6),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(  # as published, with a last step from 0.02 to 0
                use_dynamic_shifting=True, max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02
            ),
            vae=AutoencoderKLQwenImage(base_dim=8, num_res_blocks=1),
            text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
            tokenizer=words,
        )
    pipe.save_pretrained(folder)
    return folder


def make_flux2_klein(folder: Path, *, is_distilled: bool = False, seed: int = 0) -> Path:
    """A `Flux2KleinPipeline` folder with all five components; prompts are read off layers 9, 18 and 27."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    words = tokenizer()
    language = Qwen3Config(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=28,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLFlux2(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        )
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
        pipe = Flux2KleinPipeline(
            transformer=Flux2Transformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=24,
                timestep_guidance_channels=32,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=False,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=vae,
            text_encoder=Qwen3ForCausalLM(language),
            tokenizer=words,
            is_distilled=is_distilled,
        )
    pipe.save_pretrained(folder)
    return folder
