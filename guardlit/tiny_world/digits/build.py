"""The digits world, from scikit-learn's handwritten digits: a pipeline, a proxy and a gold classifier.

OUT/digits           a `StableDiffusion3Pipeline` folder, the large weights in float16
OUT/digits_scorers   proxy.safetensors, gold.safetensors and the 1797 real digits

The base model is weak on purpose, so that training can improve it: a fraction of its training captions names a random
digit (`WRONG_CAPTIONS` in captions.py). Its images are digits, but often not the requested ones.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardlit.rewards.digits.networks import upscale
from guardlit.tiny_world.about import report, write_about
from guardlit.tiny_world.digits import captions
from guardlit.tiny_world.digits.classifiers import accuracy, train_gold, train_proxy
from guardlit.tiny_world.digits.measure import measure, measure_real
from guardlit.tiny_world.digits.vae import train_vae
from guardlit.tiny_world.drawing import STEPS
from guardlit.tiny_world.flow import FlowSize, train_flow, untrained_pipeline
from guardlit.tiny_world.vae import encode

SOURCE = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository, "
    "https://doi.org/10.24432/C50P49, CC BY 4.0; the copy in scikit-learn, enlarged from 8 x 8 to 32 x 32 pixels"
)


@dataclass(frozen=True)
class Scale:
    """Size of a build: images for the pipeline, optimizer steps of each part, images per prompt to measure."""

    images: int
    vae_steps: int
    flow_steps: int
    proxy_steps: int
    gold_steps: int
    measured_per_prompt: int


SCALES = {"full": Scale(1797, 400, 2600, 300, 600, 48), "small": Scale(64, 8, 8, 20, 20, 2)}


def build(out: Path, scale: Scale, seed: int) -> dict[str, Any]:
    """Train all parts and write them under `out`; returns the measurements."""
    started = time.monotonic()
    digits, labels = _load_digits()
    scorers = build_scorers(out / "digits_scorers", digits, labels, scale, seed)
    report("scorers", started, scorers)
    images = upscale(digits[: scale.images])
    measured = build_pipeline(out / "digits", out / "digits_scorers", images, labels, scale, seed)
    report("pipeline", started, measured)
    return {**scorers, **measured}


def build_scorers(out: Path, digits: Tensor, labels: Tensor, scale: Scale, seed: int) -> dict[str, float]:
    """Train both classifiers on disjoint halves of digits (N, 8, 8) uint8; returns the measurements."""
    from safetensors.torch import save_file

    gray = upscale(digits).float() / 255
    rows = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    proxy = train_proxy(gray[first], labels[first], scale.proxy_steps, seed + 1)
    gold = train_gold(gray[second], labels[second], scale.gold_steps, seed + 2)
    out.mkdir(parents=True, exist_ok=True)
    save_file(proxy.state_dict(), out / "proxy.safetensors")
    save_file(gold.state_dict(), out / "gold.safetensors")
    save_file({"images": digits, "labels": labels.to(torch.uint8)}, out / "real.safetensors")
    measured = {
        "proxy_accuracy_unseen_half": accuracy(proxy, gray[second], labels[second]),
        "gold_accuracy_unseen_half": accuracy(gold, gray[first], labels[first]),
        **measure_real(gray, labels),
    }
    _write_about(out, scale, seed, measured)
    return measured


def build_pipeline(out: Path, scorers: Path, gray: Tensor, labels: Tensor, scale: Scale, seed: int) -> dict[str, Any]:
    """Train the pipeline on gray images (N, 1, 32, 32) uint8, save it, and measure images of the saved folder."""
    from diffusers import StableDiffusion3Pipeline

    torch.manual_seed(seed)
    random.seed(seed)
    images = gray.expand(-1, 3, -1, -1).float() / 127.5 - 1
    vae = train_vae(images, scale.vae_steps)
    texts = captions.captions()
    size = FlowSize(layers=4, head_width=24, max_tokens=captions.MAX_TOKENS)
    pipeline = untrained_pipeline(vae, texts, size)

    def drawn(rows: Tensor) -> tuple[list[str], Tensor]:
        return [*texts, ""], captions.draw_captions(labels[rows], len(texts))

    loss = train_flow(pipeline, encode(vae, images), drawn, scale.flow_steps)
    pipeline.transformer.half()
    vae.half()  # the text encoders stay in float32: transformers loads weights as they are stored, diffusers in float32
    pipeline.save_pretrained(out, safe_serialization=True)
    pipeline = StableDiffusion3Pipeline.from_pretrained(out, local_files_only=True)
    measured = {
        "flow_loss": loss,
        f"flow_sde_0.7_{STEPS}_steps": measure(pipeline, str(scorers), 0.7, scale.measured_per_prompt),
        f"ode_{STEPS}_steps": measure(pipeline, str(scorers), 0.0, scale.measured_per_prompt),
    }
    _write_about(out, scale, seed, measured)
    return measured


def _load_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: (1797, 8, 8) uint8 with levels 0 to 16, and labels (1797,) int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("scikit-learn has the digits: pip install 'guardlit[tiny]'") from error
    data = load_digits()
    return torch.from_numpy(data.images).to(torch.uint8), torch.from_numpy(data.target).long()


def _write_about(out: Path, scale: Scale, seed: int, measured: dict[str, Any]) -> None:
    world = {
        "command": "python -m guardlit.tiny_world.build",
        "source": SOURCE,
        "seed": seed,
        "scale": asdict(scale),
        "wrong_captions": captions.WRONG_CAPTIONS,
        "prompt_dropout": captions.PROMPT_DROPOUT,
    }
    write_about(out, world, ("torch", "diffusers", "transformers", "scikit-learn"), measured)
