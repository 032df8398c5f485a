"""The Trainer of every run, from a script or the command line: each of its public methods is a command."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning.pytorch as pl
import torch
from guardlit_callbacks import TrainableEMA
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from guardlit.ablation.analysis import RolloutAnalysis, with_clips
from guardlit.ablation.options import Clip
from guardlit.ablation.output import print_analysis, write_analysis
from guardlit.checkpoints.contents import check_fingerprint
from guardlit.checkpoints.io import SafeCheckpointIO
from guardlit.checkpoints.manifest import MANIFEST
from guardlit.data.prompts import given_prompts, load_prompts
from guardlit.errors import GuardlitError, at_least
from guardlit.files import sha256
from guardlit.gold import Gold
from guardlit.gold.drawing import Drawn
from guardlit.gold.evaluation import Evaluation
from guardlit.processes.lightning_internals import remove_limits
from guardlit.training.encoding import EncodeFirst
from guardlit.training.export import Export, check_merged, export_weights, find_ema, write_images
from guardlit.training.model_card.card import Origin
from guardlit.training.model_card.run_facts import run_folder_of
from guardlit.training.progress_bar import RoundProgress
from guardlit.training.run_folder import command_line, versions
from guardlit.training.run_trainer import RunTrainer, command
from guardlit.types import Prompt

if TYPE_CHECKING:
    from guardlit.data.datamodule import PromptDataModule
    from guardlit.training.module import GRPOModule


class Trainer(RunTrainer):
    """The Trainer of scripts and of the command line: Lightning's with a run's defaults, and guardlit's commands.

    A script that calls `fit` and `guardlit fit` with the same settings are the same run. Unless an argument says
    otherwise a run has the defaults of `guardlit.training.defaults`: arguments such as `gradient_clip_val=1.0`,
    verified checkpoints of the two newest rounds, `interrupted.ckpt` on a signal, one line of progress, and TensorBoard
    logs. All of a run is in one folder, `default_root_dir/version_K`, which also describes it.

    Its arguments are those of Lightning's Trainer and `tf32` (see `RunTrainer`).
    """

    @command
    def sample(
        self,
        model: GRPOModule,
        datamodule: PromptDataModule | None = None,
        ckpt_path: str | None = None,
        prompts: list[str] | str | None = None,
        n: int = 4,
        raw: bool = False,
        out: str = "samples",
    ) -> None:
        """Draw images with the evaluation settings of a configuration, and write them as PNG files.

        Args:
            model: of the configuration.
            datamodule: its validation prompts are drawn unless `prompts` is given.
            ckpt_path: a checkpoint; the untrained model without one.
            prompts: texts, prompt files and data sets to draw.
            n: images of each prompt.
            raw: draw with the raw weights although the checkpoint has averaged ones.
            out: folder for the images.
        """
        at_least(1, n=n)
        chosen = given_prompts("--prompts", prompts) if prompts else _validation_prompts(datamodule)
        texts = [prompt.text for prompt in chosen]
        items = [(k, Prompt(text)) for text in texts for k in range(n)]
        if raw and (ema := find_ema(self)) is not None:
            ema.use_for_validation = False
        batch_size = datamodule.rollout_batch if datamodule else n
        loader: DataLoader[Any] = DataLoader(cast("Dataset[Any]", items), batch_size=batch_size, collate_fn=list)
        self.callbacks.append(EncodeFirst(texts))
        batches = self.predict(model, loader, ckpt_path=ckpt_path)
        images = torch.cat(cast("list[Tensor]", batches))
        if self.is_global_zero:  # every rank has drawn all of them
            for path in write_images(images, texts, n, Path(out)):
                print(path)

    @command
    def export(
        self,
        model: GRPOModule,
        datamodule: PromptDataModule | None = None,
        ckpt_path: str | None = None,
        out: str = "export",
        to: Literal["diffusers", "comfyui", "peft"] = "diffusers",
        merged: bool = False,
    ) -> None:
        """Write a checkpoint's weights, with a model card: a LoRA, or a pipeline folder after full fine-tuning.

        Args:
            model: of the configuration.
            datamodule: not used.
            ckpt_path: the checkpoint.
            out: folder; `raw` and, if the run kept an average, `ema` are written below it.
            to: who reads the LoRA: a pipeline of diffusers, ComfyUI, or peft.
            merged: write a pipeline folder of the complete weights with the LoRA added.
        """
        if ckpt_path is None:
            raise GuardlitError("export needs --ckpt_path: without one there is nothing trained to write")
        model.policy.check_export(to, merged)
        check_merged(merged, model.evaluation.base_steps)
        checkpoint = SafeCheckpointIO().load_checkpoint(ckpt_path, map_location="cpu")
        model.configure_model()
        check_fingerprint(checkpoint, model.policy.fingerprint())
        model.load_state_dict(checkpoint["state_dict"], strict=False)
        ema = TrainableEMA()
        averages = checkpoint.get("callbacks", {}).get(ema.state_key)
        if averages:
            ema.load_state_dict(averages)
        place = Path(ckpt_path)
        digest = sha256(place / MANIFEST if place.is_dir() else place)
        origin = Origin(checkpoint["global_step"], checkpoint["epoch"] + 1, place.name, digest)
        export = Export(origin, run_folder_of(place), to, merged)
        for folder in export_weights(model, ema if averages else None, Path(out), export):
            print(folder)

    @command
    def evaluate(
        self,
        model: GRPOModule,
        gold: Gold,
        datamodule: PromptDataModule | None = None,
        ckpt: list[str] | None = None,
        label: list[str] | None = None,
        weights: Literal["ema", "raw", "both"] = "ema",
        prompts: list[str] | str | None = None,
        images_per_prompt: int | None = None,
        base_steps: list[int] | None = None,
        out: str = "evaluation",
        rescore: bool = False,
    ) -> None:
        """Compare checkpoints and exported weights with the base model: gold scores and their Average, as in Table 1.

        Args:
            model: of the configuration.
            gold: the scorers, and what the Average is made of.
            datamodule: its validation prompts, and how many images of each, unless other ones are asked for.
            ckpt: checkpoints, folders of exported weights, such as `guardlit export` writes, or LoRAs of any trainer.
            label: their names in the table, one each.
            weights: those of a checkpoint to draw with: the average where it has one, the raw ones, or both.
            prompts: texts, prompt files and data sets, instead of data.val.
            images_per_prompt: each with its own fixed noise.
            base_steps: the last denoising steps that the base model takes in place of the trained weights; several
                numbers draw each model once for each. By default those that were recorded with exported weights, else
                `model.evaluation.base_steps`.
            out: folder for images, scores and table; what is in it already is not made again.
            rescore: score the images in `out` without drawing or loading a model.
        """
        evaluation = Evaluation(self, model, gold, Path(out))
        if rescore:
            drawn = Drawn.read(Path(out))
        else:
            assert datamodule is not None
            rows = (ckpt or [], label or [], weights)
            drawn = evaluation.draw(datamodule, *rows, prompts, images_per_prompt, base_steps or [])
        evaluation.score(drawn)

    @command
    def ablate(
        self,
        model: GRPOModule,
        datamodule: PromptDataModule | None = None,
        ckpt_path: str | None = None,
        objectives: list[str] | None = None,
        clip: dict[str, Clip] | None = None,
        updates: int | None = None,
        out: str = "runs/ablation",
    ) -> None:
        """Draw one round, make some of its updates, and evaluate every objective on it with the policy that results.

        It is a `fit` that ends within its first round: nothing is saved, validated or reported on the way.

        Args:
            model: of the configuration; its objective and optimizer make the updates.
            datamodule: whose prompts are drawn.
            ckpt_path: a checkpoint to start from; the untrained model without one.
            objectives: presets to evaluate; all by default.
            clip: clip ranges by preset; by default the model's for its own objective, else the published ones.
            updates: to make before the evaluation; all of the round's but the last by default.
            out: folder for `analysis.csv`, `analysis.json` and `analysis.png`.
        """
        chosen = with_clips(model.objective, clip or {}, objectives or ())
        analysis = RolloutAnalysis(chosen, updates)
        mine: list[pl.Callback] = self.callbacks  # type: ignore[has-type]
        self.callbacks = [*(c for c in mine if isinstance(c, RoundProgress)), analysis]
        self._keeps_run = False
        self.limit_val_batches = 0
        remove_limits(self)
        with warnings.catch_warnings():
            # an average of the weights, or what else the checkpoint's callbacks keep, is not asked for
            warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
            self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        assert analysis.result is not None
        print_analysis(analysis.result)
        provenance = {
            "command": command_line(),
            "checkpoint": ckpt_path,
            "round": model.experience.round.number,
            "seed": model.experience.round.seed,
            "updates": analysis.updates,
            "updates_by": type(model.objective).__name__,
            "old_velocity": model.old_velocity,
            "precision": str(self.precision),
            "versions": versions(),
        }
        for path in write_analysis(analysis.result, provenance, Path(out)):
            print(path)


def _validation_prompts(datamodule: PromptDataModule | None) -> list[Prompt]:
    if datamodule is None or not datamodule.val_source:
        raise GuardlitError("sample needs --prompts, or a configuration with data.val")
    return list(load_prompts(datamodule.val_source))
