"""The workload: a random Stable Diffusion 3 folder and the configuration of a `guardlit fit` on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))

SIZES = {"tiny": (2, 32, 2, 8, 64), "small": (3, 192, 3, 16, 128), "mid": (6, 384, 6, 32, 256)}
"""Layers, width, heads, latent side and pixels."""
MICRO_BATCHES = 36
"""Of a round: 16 images x 9 trained steps in micro-batches of 4."""


def make_folder(folder: Path, size: str) -> Path:
    """A pipeline folder whose transformer has random weights of this size."""
    from diffusers import SD3Transformer2DModel
    from tiny_folders import make_sd3

    layers, width, heads, side, _ = SIZES[size]
    make_sd3(folder, sample_size=side)
    config = {**SD3Transformer2DModel.load_config(folder, subfolder="transformer")}
    config |= {
        "num_layers": layers,
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "caption_projection_dim": width,
        "dual_attention_layers": tuple(range(layers // 2)),
        "pos_embed_max_size": 32,
    }
    SD3Transformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    return folder


def policy_settings(model: Path, size: str) -> dict[str, Any]:
    """Arguments of the policy."""
    lora = {"rank": 32, "alpha": 64}
    return {"model": str(model), "resolution": SIZES[size][4], "lora": lora, "max_sequence_length": 32, "cache": None}


def make_config(folder: Path, model: Path, size: str, rounds: int, callbacks: str) -> Path:
    """16 images of 4 prompts, 10 steps with guidance, 9 trained, micro-batches of 4, 2 updates."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(f"prompt {i}" for i in range(4)))
    settings = {
        "model": {
            "policy": {"class_path": "SD3Policy", "init_args": policy_settings(model, size)},
            "reward": "JPEGCompressibility",
            "objective": {"class_path": "GRPOGuard", "init_args": {"clip_range": 1e-4}},
            "rollout": {"num_inference_steps": 10, "guidance_scale": 4.5, "timestep_fraction": 0.99},
            "evaluation": {"num_inference_steps": 2, "guidance_scale": 1.0},
        },
        "data": {
            "train": str(prompts),
            "val": str(prompts),
            "prompts_per_round": 4,
            "images_per_prompt": 4,
            "updates_per_round": 2,
            "micro_batch": 4,
        },
        "trainer": {
            "max_epochs": rounds,
            "accelerator": "cpu",
            "default_root_dir": str(folder / "runs"),
            "callbacks": every_callback() if callbacks == "all" else [],
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def every_callback() -> list[Any]:
    """Those of `configs/tiny_digits.yaml`; its gold scorers need digits, so another scorer replaces them."""
    chosen: list[Any] = yaml.safe_load((ROOT / "configs/tiny_digits.yaml").read_text())["trainer"]["callbacks"]
    for callback in chosen:
        if isinstance(callback, dict) and callback["class_path"].endswith("GoldScore"):
            scorer = {"class_path": "guardlit.rewards.jpeg.JPEGCompressibility", "init_args": {"incompressible": True}}
            callback["init_args"] = {"scorers": [scorer]}
    return chosen
