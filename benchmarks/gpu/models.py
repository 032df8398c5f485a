"""The published architectures with random weights, built on the device from their configurations, without weight files.

Random weights are weak evidence for rounding and underflow: each such row says so.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "norm_num_groups": 32,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
SD35_MEDIUM = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": list(range(13)),
    "qk_norm": "rms_norm",
}
FLUX_DEV = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": [16, 56, 56],
}
TINY = {"joint_attention_dim": 32, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
TINY_SD3 = {"caption_projection_dim": 32, "pos_embed_max_size": 32, "dual_attention_layers": [0], "sample_size": 8}
TINY_FLUX = {"num_layers": 1, "num_single_layers": 1, "axes_dims_rope": [4, 6, 6]}
TINY_VAE = {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4, "layers_per_block": 1}
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def write_folder(folder: Path, family: str, tiny: bool) -> Path:
    """A pipeline folder with configuration files only.

    Args:
        folder: made here.
        family: `sd35` for Stable Diffusion 3.5 Medium or `flux` for FLUX.1-dev.
        tiny: the same in a few thousand weights.
    """
    flux = family == "flux"
    transformer = {
        **(FLUX_DEV if flux else SD35_MEDIUM),
        **({**TINY, **(TINY_FLUX if flux else TINY_SD3)} if tiny else {}),
    }
    factors = (0.3611, 0.1159) if flux else (1.5305, 0.0609)
    vae = {**VAE, **(TINY_VAE if tiny else {}), "scaling_factor": factors[0], "shift_factor": factors[1]}
    network = "FluxTransformer2DModel" if flux else "SD3Transformer2DModel"
    parts = {
        "transformer": ("diffusers", network, transformer),
        "vae": ("diffusers", "AutoencoderKL", vae),
        **{name: ("transformers", kind, config) for name, kind, config in _encoders(flux)},
    }
    index: dict[str, Any] = {"_class_name": "FluxPipeline" if flux else "StableDiffusion3Pipeline"}
    for name, (library, kind, config) in parts.items():
        index[name] = [library, kind]
        own = {"_class_name": kind} if library == "diffusers" else {}
        _write(folder / name / "config.json", {**own, **config})
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    shift = {
        "_class_name": index["scheduler"][1],
        "shift": 3.0,
        "num_train_timesteps": 1000,
        **(DYNAMIC if flux else {}),
    }
    _write(folder / "scheduler/scheduler_config.json", shift)
    for number in ("", "_2") if flux else ("", "_2", "_3"):
        index[f"tokenizer{number}"] = ["transformers", "CLIPTokenizer"]
        _write(folder / f"tokenizer{number}/tokenizer_config.json", {"model_max_length": 77})
    _write(folder / "model_index.json", index)
    return folder


def _encoders(flux: bool) -> list[tuple[str, str, dict[str, Any]]]:
    t5 = ("T5EncoderModel", {"model_type": "t5", "vocab_size": 32128, **T5})
    clip = {"model_type": "clip_text_model", "projection_dim": 768, **CLIP_L}
    if flux:
        return [("text_encoder", "CLIPTextModel", clip), ("text_encoder_2", *t5)]
    kind = "CLIPTextModelWithProjection"
    large = {"model_type": "clip_text_model", "projection_dim": 1280, **CLIP_G}
    return [("text_encoder", kind, clip), ("text_encoder_2", kind, large), ("text_encoder_3", *t5)]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def build(loader: Any, folder: Path, component: str, device: torch.device, dtype: torch.dtype, **_: Any) -> Any:
    """A component of a folder with random weights on a device; no file is read."""
    from guardlit.policies.parts.skeleton import skeleton_component

    model = skeleton_component(loader, folder, component, dtype).to_empty(device=device)
    return randomize(model).eval()


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep activations at one scale: 1 / sqrt(inputs), 1 for norms; positions between -1 and 1."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
        else:
            parameter.fill_(0.0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.fill_(1.0)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0, 2 * math.pi, generator=generator).sin_()
        else:  # position indices
            buffer.copy_(torch.arange(buffer.shape[-1]))
    return model


@contextmanager
def random_weights(folder: Path, kind: str, tokens: int) -> Iterator[None]:
    """Give policies random weights for a folder of `write_folder`, and every prompt random embeddings, in this context.

    Args:
        folder: of configurations.
        kind: of device, `cuda` or `cpu`.
        tokens: of a prompt's embedding, the sum over encoders.
    """
    from guardlit.policies.folders.embeddings import EmbeddingCache

    config = json.loads((folder / "transformer/config.json").read_text())
    shapes = {"prompt_embeds": (tokens, config["joint_attention_dim"]), "pooled": (config["pooled_projection_dim"],)}

    def loaded(loader: Any, folder: Path, component: str, **kwargs: Any) -> Any:
        return build(loader, folder, component, torch.device(kind), **kwargs)

    modules = {n: m for n, m in sys.modules.items() if n.startswith("guardlit.policies.")}
    users = [
        m for n, m in modules.items() if n != "guardlit.policies.folders.components" and hasattr(m, "load_component")
    ]
    if not users:
        raise RuntimeError("no policy reads its weights by load_component")
    before = {module: vars(module)["load_component"] for module in users}
    kept = EmbeddingCache.missing, EmbeddingCache.get
    for module in users:
        setattr(module, "load_component", loaded)  # noqa: B010
    EmbeddingCache.missing = lambda self, prompts: []
    EmbeddingCache.get = lambda self, prompts: random_embeddings(prompts, shapes)
    try:
        yield
    finally:
        for module, function in before.items():
            setattr(module, "load_component", function)  # noqa: B010
        EmbeddingCache.missing, EmbeddingCache.get = kept


def random_embeddings(prompts: Sequence[str], shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Normal numbers that depend only on the prompt's text, leading dimension P."""
    tables: dict[str, list[Tensor]] = {name: [] for name in shapes}
    for prompt in prompts:
        generator = torch.Generator().manual_seed(zlib.crc32(prompt.encode()))
        for name, shape in shapes.items():
            tables[name].append(torch.randn(shape, generator=generator, device="cpu"))
    return {name: torch.stack(rows) for name, rows in tables.items()}


TOKENS = {"sd35": 77 + 128, "flux": 128}
"""Of a prompt in the published runs: both CLIPs' and T5's, or T5's."""


@contextmanager
def policy_of(
    folder: Path, family: str, kind: str, tiny: bool, weights_dtype: str = "fp32", **options: Any
) -> Iterator[Any]:
    """A loaded policy on the device, in half or full storage; options are its constructor's."""
    from guardlit.policies import FluxPolicy, SD3Policy

    path = folder if folder.exists() else write_folder(folder, family, tiny)
    cls = FluxPolicy if family == "flux" else SD3Policy
    tokens = 16 if tiny else TOKENS[family]
    with random_weights(path, kind, tokens):
        resolution = 64 if tiny else 512
        policy = cls(str(path), resolution=resolution, weights_dtype=weights_dtype, cache=None, **options)
        policy.load()
        policy.to(kind)
        yield policy


@torch.no_grad()
def stir(policy: nn.Module, size: float = 1e-2, seed: int = 1) -> None:
    """Perturb an adapter, which starts as the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.named_parameters():
        if ".lora_B.default" in name:
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
