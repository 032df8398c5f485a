"""The words world, from drawn signs (signs.py): a pipeline and the gold scorers. The proxy is the `OCR` scorer.

OUT/words           a `StableDiffusion3Pipeline` folder, the large weights in float16
OUT/words_scorers   signs.safetensors, the classifier; realism.safetensors, a network and real signs' features

Each part has a seed of its own and draws new signs, so that no scorer has seen the pipeline's signs.
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guardlit.tiny_world.about import report, write_about
from guardlit.tiny_world.drawing import STEPS
from guardlit.tiny_world.flow import FlowSize, train_flow, untrained_pipeline
from guardlit.tiny_world.text import pretrain_encoders
from guardlit.tiny_world.vae import encode
from guardlit.tiny_world.words import captions, signs
from guardlit.tiny_world.words.measure import measure, measure_real
from guardlit.tiny_world.words.scorers import real_features, to_tensor, train_classifier, train_features
from guardlit.tiny_world.words.signs import Sign, draw_signs, random_sign
from guardlit.tiny_world.words.vae import train_vae


@dataclass(frozen=True)
class Scale:
    """Size of a build: signs for the pipeline, optimizer steps of each part, signs for each scorer and to measure."""

    signs: int
    vae_steps: int
    text_steps: int
    flow_steps: int
    scorer_signs: int
    classifier_steps: int
    feature_steps: int
    measured: int


SCALES = {"full": Scale(6000, 1800, 200, 3200, 3000, 600, 1500, 320), "small": Scale(48, 3, 3, 3, 48, 3, 3, 16)}
SIZE = FlowSize(layers=4, head_width=24, max_tokens=captions.MAX_TOKENS)


def build(out: Path, scale: Scale, seed: int) -> dict[str, Any]:
    """Train all parts and write them under `out`; returns the measurements."""
    started = time.monotonic()
    scorers = build_scorers(out / "words_scorers", scale, seed)
    report("scorers", started, scorers)
    drawn, images = training_signs(scale, seed)
    vae = build_vae(images, scale, seed)
    report("autoencoder", started, {})
    measured = build_pipeline(out / "words", out / "words_scorers", vae, drawn, images, scale, seed)
    report("pipeline", started, measured)
    return {**scorers, **measured}


def build_scorers(out: Path, scale: Scale, seed: int) -> dict[str, Any]:
    """Train the networks of the gold scorers; returns the measurements on held-out signs."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    save_file(
        train_classifier(scale.scorer_signs, scale.classifier_steps, seed + 1).state_dict(), out / "signs.safetensors"
    )
    net = train_features(scale.scorer_signs, scale.feature_steps, seed + 2)
    save_file({**net.state_dict(), "real": real_features(net, seed + 3)}, out / "realism.safetensors")
    measured = measure_real(str(out), scale.measured, seed + 4)
    _write_about(out, scale, seed, measured)
    return measured


def training_signs(scale: Scale, seed: int) -> tuple[list[Sign], Tensor]:
    """The pipeline's signs, and their images (N, 3, 64, 64) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    drawn = [random_sign(rng) for _ in range(scale.signs)]
    return drawn, to_tensor(draw_signs(drawn, rng)).float() / 127.5 - 1


def build_vae(images: Tensor, scale: Scale, seed: int) -> Any:
    """Train the autoencoder."""
    torch.manual_seed(seed)
    return train_vae(images, scale.vae_steps)


def build_pipeline(
    out: Path, scorers: Path, vae: Any, drawn: list[Sign], images: Tensor, scale: Scale, seed: int
) -> dict[str, Any]:
    """Train the pipeline on signs and their images, save it, and measure images of the saved folder."""
    from diffusers import StableDiffusion3Pipeline

    torch.manual_seed(seed)
    random.seed(seed)
    wording = random.Random(seed)
    pipeline = untrained_pipeline(vae, captions.vocabulary(), SIZE)
    named = partial(captions.draw_named, rng=np.random.default_rng(seed))
    told = pretrain_encoders(pipeline, named, captions.CHOICES, scale.text_steps)

    def caption(rows: Tensor) -> tuple[list[str], Tensor]:
        return [captions.draw_caption(drawn[row], wording) for row in rows.tolist()], torch.arange(len(rows))

    loss = train_flow(pipeline, encode(vae, images), caption, scale.flow_steps, batch=32, rate=2e-3)
    pipeline.transformer.half()
    vae.half()  # the text encoders stay in float32: transformers loads weights as they are stored, diffusers in float32
    pipeline.save_pretrained(out, safe_serialization=True)
    pipeline = StableDiffusion3Pipeline.from_pretrained(out, local_files_only=True)
    measured = {
        "text_accuracy": told,
        "flow_loss": loss,
        f"flow_sde_0.7_{STEPS}_steps": measure(pipeline, str(scorers), 0.7, scale.measured),
        f"ode_{STEPS}_steps": measure(pipeline, str(scorers), 0.0, scale.measured),
    }
    _write_about(out, scale, seed, measured)
    return measured


def _write_about(out: Path, scale: Scale, seed: int, measured: dict[str, Any]) -> None:
    world = {
        "command": "python -m guardlit.tiny_world.build words",
        "source": "drawn by guardlit/tiny_world/words/signs.py with the DejaVu fonts of matplotlib",
        "distribution": (signs.__doc__ or "").strip().splitlines(),
        "seed": seed,
        "scale": asdict(scale),
        "wrong_characters": captions.WRONG_CHARACTERS,
        "prompt_dropout": captions.PROMPT_DROPOUT,
    }
    write_about(out, world, ("torch", "diffusers", "transformers", "pillow", "matplotlib"), measured)
