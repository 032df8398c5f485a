"""Model folders in the published file formats, with a few thousand random weights: in place of downloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, T5Tokenizer

VOCABULARY = (
    "a an and the of in on with photo painting sign says two three four red green blue black white cat dog bird horse "
    "cup table chair house tree sky zero one five six seven eight nine handwritten digit"
)
WORDS = VOCABULARY.split()
IMAGE_SIZE = 32  # input size of the tiny CLIP in pixels


def make_clip(folder: Path, *, seed: int = 0) -> Path:
    """A CLIP folder laid out like PickScore's: config, safetensors, tokenizer and image processor files."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = _clip_tokenizer(folder)
    tower: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
    }
    vision = tower | {"image_size": IMAGE_SIZE, "patch_size": 8}
    # eos_token_id 2, as in old CLIP configurations, selects pooling at the highest token id
    text = tower | {"vocab_size": len(tokenizer), "bos_token_id": len(tokenizer) - 2, "eos_token_id": 2}
    config = CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=16, logit_scale_init_value=4.6052, initializer_factor=1.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=side).save_pretrained(folder)
    return folder


def make_sd3(
    folder: Path, *, sample_size: int = 8, pos_embed_max_size: int = 32, shift: float = 3.0, seed: int = 0
) -> Path:
    """A `StableDiffusion3Pipeline` folder with all nine components; images are 8 x sample_size pixels wide."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    first = _clip_tokenizer(folder / "tokenizer")
    second = _clip_tokenizer(folder / "tokenizer_2", pad_token="!")
    third = _t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            sample_size=sample_size,
            pos_embed_max_size=pos_embed_max_size,
            num_layers=2,
            dual_attention_layers=(0,),  # 3.5-medium's second attention, in one of the two blocks
            qk_norm="rms_norm",
            num_attention_heads=2,
            attention_head_dim=16,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            in_channels=16,
            out_channels=16,
        )
        pipe = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
            vae=_vae(scaling_factor=1.5305, shift_factor=0.0609),
            text_encoder=_clip_text(len(first), "quick_gelu"),
            text_encoder_2=_clip_text(len(second), "gelu"),
            text_encoder_3=_t5(len(third)),
            tokenizer=first,
            tokenizer_2=second,
            tokenizer_3=third,
        )
    pipe.save_pretrained(folder)
    return folder


def make_flux(folder: Path, *, guidance_embeds: bool = True, seed: int = 0) -> Path:
    """A `FluxPipeline` folder with all seven components; without guidance embedding it is laid out like schnell's."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    first, second = _clip_tokenizer(folder / "tokenizer"), _t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
        pipe = FluxPipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
            ),
            vae=_vae(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=_clip_text(len(first), "quick_gelu", projection=False),
            text_encoder_2=_t5(len(second)),
            tokenizer=first,
            tokenizer_2=second,
        )
    pipe.save_pretrained(folder)
    return folder


def _vae(**factors: float) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        latent_channels=16,
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **factors,
    )


def _t5(vocab_size: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config)


def _clip_text(vocab_size: int, activation: str, projection: bool = True) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        hidden_act=activation,
        bos_token_id=vocab_size - 2,
        eos_token_id=2,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _clip_tokenizer(folder: Path, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Byte-level BPE in CLIP's layout: 256 bytes, the same at a word's end, merges, then start and end of text."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    merges: dict[tuple[str, str], None] = {}  # an ordered set: every word grows from its left end
    for word in WORDS:
        for i in range(1, len(word)):
            end = "</w>" if i == len(word) - 1 else ""
            merges[word[:i], word[i] + end] = None
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]

    folder.mkdir(parents=True, exist_ok=True)
    vocab = json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocab, encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad_token,
        "do_lower_case": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _t5_tokenizer() -> T5Tokenizer:
    """A unigram vocabulary with log-probabilities: complete words first, single characters as the fallback."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [("\u2581" + word, -4.0) for word in WORDS]
    pieces += [(chr(c), -8.0) for c in range(33, 127)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=256)


def make_dino(folder: Path, *, kind: str = "dinov2", seed: int = 0) -> Path:
    """A DINOv2 or DINOv3 (`dinov3_vit`) folder: config, safetensors and image processor files."""
    import torch
    from transformers import (
        BitImageProcessor,
        Dinov2Config,
        Dinov2Model,
        DINOv3ViTConfig,
        DINOv3ViTImageProcessor,
        DINOv3ViTModel,
    )

    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    size: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "dinov2":
            network, resize = Dinov2Model(Dinov2Config(**size)), {"shortest_edge": IMAGE_SIZE}
            processor = BitImageProcessor(size=resize, crop_size=side, do_center_crop=True)
        else:
            network = DINOv3ViTModel(DINOv3ViTConfig(**size, intermediate_size=32, num_register_tokens=4))
            processor = DINOv3ViTImageProcessor(size=side)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
