"""The run of `runs.config` as a script: `python script.py FOLDER MODEL [CKPT_PATH]`, or `train` in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from guardlit_callbacks import TrainableEMA
from lightning.pytorch import Callback, LightningModule, seed_everything

import guardlit as gl


class Stop(Callback):
    """Sends this process a signal before the 6th micro-batch, which is within the first round."""

    def __init__(self, signum: int) -> None:
        self.signum, self.seen = signum, 0

    def on_train_batch_start(self, *_: object) -> None:
        """Count."""
        import signal

        self.seen += 1
        if self.seen == 6:
            signal.raise_signal(self.signum)


def build(folder: Path, model: Path, *callbacks: Callback, **arguments: Any) -> tuple[gl.Trainer, LightningModule, Any]:
    """Trainer, module and data with the settings that `runs.config` writes; `arguments` are the Trainer's."""
    seed_everything(42, workers=True)
    module = gl.GRPOModule(
        policy=gl.SD3Policy(
            str(model), resolution=32, lora=gl.LoRA(rank=4, alpha=8.0), max_sequence_length=16, cache=None
        ),
        reward=gl.JPEGCompressibility(),
        objective=gl.GRPOGuard(clip_range=1e-4),
        rollout=gl.Rollout(num_inference_steps=5, guidance_scale=1.0),
        evaluation=gl.Sampling(num_inference_steps=2, guidance_scale=1.0),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4),
    )
    data = gl.PromptDataModule(
        train=str(folder / "prompts.txt"),
        val=str(folder / "prompts.txt"),
        val_limit=2,
        prompts_per_round=2,
        images_per_prompt=4,
        updates_per_round=4,
        inner_epochs=2,
        micro_batch=4,
    )
    own: dict[str, Any] = {"max_epochs": 3, "accelerator": "cpu", "default_root_dir": folder / "script", **arguments}
    return gl.Trainer(callbacks=[TrainableEMA(), *callbacks], **own), module, data


def train(
    folder: Path, model: Path, *callbacks: Callback, ckpt_path: str | None = None, **arguments: Any
) -> gl.Trainer:
    """Train as `guardlit fit` does with that configuration."""
    trainer, module, data = build(folder, model, *callbacks, **arguments)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


if __name__ == "__main__":
    import signal

    train(Path(sys.argv[1]), Path(sys.argv[2]), Stop(signal.SIGTERM))
