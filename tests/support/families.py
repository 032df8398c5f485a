"""The model families, each with its tiny folder and the arguments of its pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
from tiny_folders import make_flux, make_sd3
from tiny_qwen import make_flux2_klein, make_qwen_image
from torch import Tensor

from guardlit.policies import DiffusersPolicy, Flux2KleinPolicy, FluxPolicy, LoRA, QwenImagePolicy, SD3Policy

PROMPTS = ["a cat", "two dogs on a table"]
SIDE = 64  # pixels


@dataclass(frozen=True)
class Family:
    """One model family under test.

    Attributes:
        policy: guardlit's class.
        make: writes a tiny pipeline folder.
        lora_layers: how many linear layers of the tiny transformer the default adapter changes.
        tokens: the pipeline's form of (B, C, H, W) latents; the identity unless it packs them.
        latents: its inverse.
        guidance: the pipeline's own arguments for a guidance scale.
        length: text tokens, enough for the prompts.
    """

    policy: type[DiffusersPolicy]
    make: Callable[[Path], Path]
    lora_layers: int
    tokens: Callable[[Tensor], Tensor] = lambda x: x
    latents: Callable[[Tensor], Tensor] = lambda x: x
    guidance: Callable[[float], dict[str, Any]] = lambda scale: {"guidance_scale": scale}
    length: int = 16

    def load(self, folder: Path, **options: object) -> DiffusersPolicy:
        """The policy on a folder, with encoded prompts; by default all policies of a folder use one cache."""
        cache = str(folder.with_name(f"{folder.name}_embeddings"))
        settings = {"lora": LoRA(4, 8), "cache": cache, "max_sequence_length": self.length, **options}
        policy = self.policy(str(folder), SIDE, **settings)
        policy.load()
        policy.encode(PROMPTS)
        return policy

    def pipeline(self, folder: Path, **parts: object) -> Any:
        """diffusers' own pipeline."""
        cls = getattr(diffusers, self.policy.pipeline_class)
        pipe = cls.from_pretrained(folder, local_files_only=True, **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: Any, scale: float, steps: int = 3, **options: object) -> Tensor:
        """Images of the prompts by the pipeline's own call, (B, 3, height, width) in [0, 1]."""
        settings = {"height": SIDE, "width": SIDE, "max_sequence_length": self.length, "output_type": "pt", **options}
        return pipe(prompt=[*PROMPTS], num_inference_steps=steps, **self.guidance(scale), **settings).images

    def schedules(self, folder: Path, pixels: int, steps: int) -> tuple[Tensor, Tensor]:
        """Sigmas of the policy and of the pipeline's own call at an image size, (T + 1,) each."""
        pipe, policy = self.pipeline(folder), self.policy(str(folder), pixels, cache=None)
        self.draw(pipe, 1.0, steps, height=pixels, width=pixels, output_type="latent")
        policy.load()
        return policy.sigmas(steps), pipe.scheduler.sigmas


def _flux_tokens(x: Tensor) -> Tensor:
    return diffusers.FluxPipeline._pack_latents(x, *x.shape)


def _flux_latents(x: Tensor) -> Tensor:
    return diffusers.FluxPipeline._unpack_latents(x, SIDE, SIDE, 8)


def _true_cfg(scale: float) -> dict[str, Any]:
    return {"true_cfg_scale": scale, **({"negative_prompt": [" "] * len(PROMPTS)} if scale > 1 else {})}


FAMILIES = {
    "sd3": Family(SD3Policy, make_sd3, lora_layers=8 + 7),  # the last block has no text output
    "flux": Family(FluxPolicy, make_flux, lora_layers=12 + 3, tokens=_flux_tokens, latents=_flux_latents),
    "qwen_image": Family(
        QwenImagePolicy,
        make_qwen_image,
        lora_layers=12 + 9,
        tokens=_flux_tokens,
        latents=_flux_latents,
        guidance=_true_cfg,
    ),
    "flux2_klein": Family(
        Flux2KleinPolicy,
        make_flux2_klein,
        lora_layers=12 + 1,
        latents=lambda x: x.transpose(1, 2).unflatten(2, (SIDE // 16, SIDE // 16)),
        length=24,
    ),
}
