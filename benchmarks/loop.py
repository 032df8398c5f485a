"""How much of a round is spent inside the model: `python benchmarks/loop.py [--size tiny|mid] [--rounds 3]`.

Trains a random Stable Diffusion 3 model through guardlit's own module, loader and Lightning's Trainer, and times every
call of the transformer and every backward pass inside the same run. The share is a ratio within that run: a noisy
machine matters little. What is left over is guardlit's and Lightning's: noise, objective, optimizer, logging, the
checkpoint of the round, and in the rollout VAE decoding and scoring.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import lightning.pytorch as pl
import torch
from diffusers import SD3Transformer2DModel
from rich.console import Console
from rich.table import Table
from tiny_folders import make_sd3

from guardlit.data import PromptDataModule
from guardlit.module import GRPOModule
from guardlit.objective import GRPOGuard
from guardlit.policies import LoRA, SD3Policy
from guardlit.rewards.jpeg import JPEGCompressibility
from guardlit.settings import Rollout

SIZES = {"tiny": (2, 32, 2, 8, 64), "mid": (6, 384, 6, 32, 256)}
"""Layers, width, heads, latent side and pixels."""


class Clock(pl.Callback):
    """Seconds in the transformer and in backward passes, by phase, against the wall clock of each round."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, float]] = []
        self._now = dict.fromkeys(("rollout", "train"), 0.0)
        self._phase, self._begun, self._round = "rollout", 0.0, 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wrap the transformer's forward."""
        transformer = pl_module.policy.transformer
        forward = transformer.forward

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            out = forward(*args, **kwargs)
            self._now["train" if torch.is_grad_enabled() else "rollout"] += time.perf_counter() - begun
            return out

        transformer.forward = timed
        self._round = time.perf_counter()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Start of a backward pass."""
        self._begun = time.perf_counter()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End of a backward pass."""
        self._now["train"] += time.perf_counter() - self._begun

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: GRPOModule) -> None:
        """Close a round."""
        wall = time.perf_counter() - self._round
        metrics = pl_module.round_metrics
        rollout = metrics["time/rollout_s"] + metrics["time/reward_s"]
        self.rounds.append(
            {"rollout": rollout, "update": wall - rollout, **{f"model_{k}": v for k, v in self._now.items()}}
        )
        self._now = dict.fromkeys(self._now, 0.0)
        self._round = time.perf_counter()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    layers, width, heads, side, pixels = SIZES[args.size]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_sd3(folder / "model", sample_size=side)
        transformer = SD3Transformer2DModel.from_pretrained(folder / "model", subfolder="transformer")
        config = {
            **transformer.config,
            "num_layers": layers,
            "num_attention_heads": heads,
            "attention_head_dim": width // heads,
        }
        config |= {
            "caption_projection_dim": width,
            "dual_attention_layers": tuple(range(layers // 2)),
            "pos_embed_max_size": 32,
        }
        SD3Transformer2DModel.from_config(config).save_pretrained(folder / "model/transformer")
        (folder / "prompts.txt").write_text("\n".join(f"prompt {i}" for i in range(4)))
        policy = SD3Policy(str(folder / "model"), resolution=pixels, lora=LoRA(), max_sequence_length=32, cache=None)
        module = GRPOModule(policy, JPEGCompressibility(), objective=GRPOGuard(1e-4), rollout=Rollout(10, 4.5))
        data = PromptDataModule(str(folder / "prompts.txt"), None, 4, 4, 2, 1, 4)
        clock = Clock()
        options = dict(enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, accelerator="cpu")
        pl.Trainer(max_epochs=args.rounds, callbacks=[clock], default_root_dir=folder, **options).fit(module, data)
    show(args.size, clock.rounds)


def show(size: str, rounds: list[dict[str, float]]) -> None:
    """Print a row a round."""
    table = Table(title=f"{size}: 16 images, 10 steps with guidance, 9 trained, micro-batch 4, 2 updates")
    for column in ("round", "rollout s", "share in model", "update s", "share in model", "overhead ms/micro-batch"):
        table.add_column(column, justify="right")
    for i, r in enumerate(rounds):
        shares = r["model_rollout"] / r["rollout"], r["model_train"] / r["update"]
        overhead = 1000 * (r["update"] - r["model_train"]) / 36
        cells = f"{r['rollout']:.2f}", f"{shares[0]:.3f}", f"{r['update']:.2f}", f"{shares[1]:.4f}", f"{overhead:.2f}"
        table.add_row(str(i), *cells)
    Console(width=110).print(table)
    print(f"peak resident memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
