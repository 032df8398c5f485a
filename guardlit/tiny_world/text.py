"""Tokenizers and text encoders of a tiny pipeline, for the words of its captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

WIDTH = 32
"""Width of each CLIP encoder; T5 is as wide as both."""
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(texts: Sequence[str], pad_token: str, max_tokens: int) -> Any:
    """A byte-level CLIP tokenizer with one token for each word of some texts; it spells all others."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(sign + "</w>" for sign in alphabet), *dict.fromkeys(a + b for a, b in merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=max_tokens)


def t5_tokenizer(texts: Sequence[str], max_tokens: int) -> Any:
    """A T5 tokenizer with one piece for each word of some texts, and printable ASCII characters for all others."""
    from transformers import T5Tokenizer

    words = dict.fromkeys(word for text in texts for word in text.split())
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *(("▁" + word, -4.0) for word in words)]
    pieces += [(chr(code), -8.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_tokens)


def clip_encoder(vocabulary_size: int, activation: str, max_tokens: int) -> Any:
    """A random CLIP text encoder of two layers, trained with the transformer."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_tokens,
        hidden_act=activation,
        bos_token_id=vocabulary_size - 2,
        eos_token_id=vocabulary_size - 1,
        pad_token_id=vocabulary_size - 1,
    )
    return CLIPTextModelWithProjection(config)


def t5_encoder(vocabulary_size: int) -> Any:
    """A random T5 encoder of one layer, trained with the transformer."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=2 * WIDTH,
        d_kv=WIDTH,
        d_ff=2 * WIDTH,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def pretrain_encoders(
    pipeline: Any, draw: Callable[[int], tuple[list[str], Tensor]], classes: Sequence[int], steps: int, batch: int = 128
) -> float:
    """Train the text encoders to tell what captions name, from the pooled and from the mean T5 embedding.

    As in Stable Diffusion, whose encoders come trained: the transformer then finds in them what it must draw.

    Args:
        pipeline: with random text encoders.
        draw: a number of captions -> that many of them, and what each names: (B, len(classes)) int64.
        classes: how many choices each named thing has.
        steps: of the optimizer.
        batch: captions of a step.

    Returns:
        The last step's accuracy from the pooled embedding, mean over the named things.
    """
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3]
    heads = nn.ModuleList([nn.Linear(2 * WIDTH, sum(classes)) for _ in range(2)])
    trained = nn.ModuleList([*encoders, heads]).train()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    accuracy = 0.0
    for _ in range(steps):
        texts, named = draw(batch)
        length = pipeline.tokenizer.model_max_length
        tokens, _, pooled, _ = pipeline.encode_prompt(
            texts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        logits = [
            head(x).split(list(classes), dim=1)
            for head, x in zip(heads, (pooled, tokens[:, length:].mean(1)), strict=True)
        ]
        losses = [cross_entropy(part, named[:, i]) for parts in logits for i, part in enumerate(parts)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        right = [(part.argmax(1) == named[:, i]).float().mean() for i, part in enumerate(logits[0])]
        accuracy = torch.stack(right).mean().item()
    return accuracy
