"""A run folder that explains itself."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from guardlit.config.modules import KEY, RUN_FILE, module_folders
from guardlit.devices.float32 import float32_products
from guardlit.rounds.reward_runner import gold_scorers
from guardlit.schedule import schedule_table, write_csv

if TYPE_CHECKING:
    from guardlit.data.datamodule import PromptDataModule
    from guardlit.training.module import GRPOModule

PACKAGES = ("guardlit", "guardlit-callbacks", "torch", "lightning", "diffusers", "transformers", "peft", "jsonargparse")


class RunFolder(pl.Callback):
    """Writes what a run is made of next to its logs, before the first image is drawn.

    `config.yaml` (by the command line), `run.json` (versions, machine, command, checkpoint resumed from, folders
    of the user's modules, who scores: the scorers' provenance and their scores in the start-up test), `schedule.csv`
    (the sampler's coefficients and every objective's gradient scale) and `batches.txt`. Gold scorers stand in
    `run.json` once they are loaded.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the batch arithmetic, and write the files."""
        data: PromptDataModule = trainer.datamodule  # type: ignore[attr-defined]
        module: GRPOModule = pl_module  # type: ignore[assignment]
        rank_zero_info(data.plan.describe())
        if not trainer.is_global_zero or trainer.log_dir is None:
            return
        folder = Path(trainer.log_dir)
        (folder / "batches.txt").write_text(data.plan.describe() + "\n", encoding="utf-8")
        table = schedule_table(module.coefficients(), range(module.rollout.available_steps))
        write_csv(folder / "schedule.csv", table)
        self._facts = {
            "command": command_line(),
            "resumed_from": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            KEY: module_folders(),
            "versions": versions(),
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "tf32": float32_products(),
            "deterministic": _deterministic(),
            "reward": {"name": module.reward.name, "weights": dict(module.reward.weights)},
            "prompts": {"train": len(data.train), "val": len(data.val)},
        }
        self._write(folder, module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the gold scorers that this validation loaded."""
        module: GRPOModule = pl_module  # type: ignore[assignment]
        if (
            self._facts
            and trainer.log_dir is not None
            and len(self._facts["start_up_scores"]) < len(module.reward_runner.tested)
        ):
            self._write(Path(trainer.log_dir), module)

    def _write(self, folder: Path, module: GRPOModule) -> None:
        scorers = {name: term.scorer for name, term in module.reward.terms.items()}
        scorers |= {f"gold/{name}": scorer for name, scorer in gold_scorers(module.trainer.callbacks).items()}  # type: ignore[attr-defined]
        tested = module.reward_runner.tested
        self._facts["scorers"] = {name: dict(scorer.provenance) for name, scorer in scorers.items() if name in tested}
        self._facts["start_up_scores"] = dict(tested)
        (folder / RUN_FILE).write_text(json.dumps(self._facts, indent=2) + "\n", encoding="utf-8")


def _deterministic() -> bool | str:
    """As `trainer.deterministic`: whether torch refuses nondeterministic operations, or only warns of them."""
    if not torch.are_deterministic_algorithms_enabled():
        return False
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else True


def command_line() -> list[str]:
    """Program and arguments of this process, as a user types them."""
    program = Path(sys.argv[0])
    return [program.parent.name if program.name == "__main__.py" else program.name, *sys.argv[1:]]


def versions() -> dict[str, str | None]:
    """Versions of the packages that decide what a run computes."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
