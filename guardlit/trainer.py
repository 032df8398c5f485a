"""Lightning's Trainer with guardlit's further commands: each method is a subcommand of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from guardlit_callbacks import TrainableEMA
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from guardlit.checkpoint import SafeCheckpointIO, check_fingerprint
from guardlit.errors import GuardlitError
from guardlit.export import export_weights, find_ema, write_images
from guardlit.prompts import load_prompts
from guardlit.types import Prompt

if TYPE_CHECKING:
    from guardlit.data import PromptDataModule
    from guardlit.module import GRPOModule


class GuardlitTrainer(pl.Trainer):
    """A Trainer that can also draw images and export weights."""

    def sample(
        self,
        model: GRPOModule,
        datamodule: PromptDataModule | None = None,
        ckpt_path: str | None = None,
        prompts: list[str] | None = None,
        n: int = 4,
        raw: bool = False,
        out: str = "samples",
    ) -> None:
        """Draw images with the evaluation settings of a configuration, and write them as PNG files.

        Args:
            model: of the configuration.
            datamodule: its validation prompts are drawn unless `prompts` is given.
            ckpt_path: a checkpoint; the untrained model without one.
            prompts: texts to draw.
            n: images of each prompt.
            raw: draw with the raw weights although the checkpoint has averaged ones.
            out: folder for the images.
        """
        texts = prompts or [p.text for p in _validation_prompts(datamodule)]
        items = [(k, Prompt(text)) for text in texts for k in range(n)]
        if raw and (ema := find_ema(self)) is not None:
            ema.use_for_validation = False
        batch_size = datamodule.rollout_batch if datamodule else n
        loader: DataLoader[Any] = DataLoader(cast("Dataset[Any]", items), batch_size=batch_size, collate_fn=list)
        batches = self.predict(model, loader, ckpt_path=ckpt_path)
        images = torch.cat(cast("list[Tensor]", batches))
        for path in write_images(images, texts, n, Path(out)):
            print(path)

    def export(
        self,
        model: GRPOModule,
        datamodule: PromptDataModule | None = None,
        ckpt_path: str | None = None,
        out: str = "export",
    ) -> None:
        """Write a checkpoint's weights for diffusers: a LoRA, or a pipeline folder after full fine-tuning.

        Args:
            model: of the configuration.
            datamodule: not used.
            ckpt_path: the checkpoint.
            out: folder; `raw` and, if the run kept an average, `ema` are written below it.
        """
        if ckpt_path is None:
            raise GuardlitError("export needs --ckpt_path: without one there is nothing trained to write")
        checkpoint = SafeCheckpointIO().load_checkpoint(ckpt_path, map_location="cpu")
        model.configure_model()
        check_fingerprint(checkpoint, model.policy.fingerprint())
        model.load_state_dict(checkpoint["state_dict"], strict=False)
        ema = TrainableEMA()
        averages = checkpoint.get("callbacks", {}).get(ema.state_key)
        if averages:
            ema.load_state_dict(averages)
        for folder in export_weights(model, ema if averages else None, Path(out)):
            print(folder)


def _validation_prompts(datamodule: PromptDataModule | None) -> list[Prompt]:
    if datamodule is None or not datamodule.val_source:
        raise GuardlitError("sample needs --prompts, or a configuration with data.val")
    return load_prompts(datamodule.val_source)
