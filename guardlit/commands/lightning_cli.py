"""`guardlit fit`, `validate`, `sample` and `export`: LightningCLI around the module and the prompts."""

from __future__ import annotations

import errno
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

import guardlit.policies  # so that YAML may say `class_path: SD3Policy`
import guardlit.rewards  # noqa: F401 - and `class_path: PickScore`
from guardlit.checkpoints.integrity import newest_intact, require_intact
from guardlit.checkpoints.io import SafeCheckpointIO
from guardlit.commands.trainer import GuardlitTrainer
from guardlit.config import GuardlitParser
from guardlit.config.limits import as_one_line, check_seed, check_trainer
from guardlit.data.datamodule import PromptDataModule
from guardlit.errors import GuardlitError
from guardlit.processes.shutdown import release_resources
from guardlit.processes.watchdog import RankWatchdog, report_to_launcher
from guardlit.training.ddp import keep_buffers
from guardlit.training.linter import Linter
from guardlit.training.module import GRPOModule
from guardlit.training.progress_bar import RoundProgress
from guardlit.training.run_folder import RunFolder, next_version
from guardlit.training.sharded_strategy import ShardedStrategy
from guardlit.training.signals import Interrupted, SignalGuard

DEFAULTS = {
    "accelerator": "cuda" if torch.cuda.is_available() else "cpu",  # ratios need float64, which Apple's MPS lacks
    "devices": 1,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,  # validation at step 0 is the first point of every curve, not a rehearsal
    "check_val_every_n_epoch": 10,
    "use_distributed_sampler": False,  # the round's plan deals samples to processes
    "enable_model_summary": False,
    "gradient_clip_val": 1.0,
    "inference_mode": False,  # an average of sharded weights cannot be put in place under it
    "default_root_dir": "runs/guardlit",
}


class GuardlitCLI(LightningCLI):
    """The command line: what every run has, whatever its YAML says."""

    def __init__(self, args: list[str]) -> None:
        self._args = args
        self._peers = RankWatchdog()
        super().__init__(
            GRPOModule,
            PromptDataModule,
            trainer_class=GuardlitTrainer,
            trainer_defaults=DEFAULTS,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=42,
            auto_configure_optimizers=False,
            parser_class=GuardlitParser,
            parser_kwargs={"prog": "guardlit", "default_env": True, "env_prefix": "GUARDLIT"},
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's fit and validate, and guardlit's own methods of its Trainer."""
        own = {"model", "datamodule"}
        lightning = LightningCLI.subcommands()
        more = dict.fromkeys(("sample", "export", "evaluate", "ablate"), own)
        return {"fit": lightning["fit"], "validate": lightning["validate"], **more}

    def add_arguments_to_parser(self, parser: Any) -> None:
        """One seed for everything, and what the parser has already followed when it sees the key `base`."""
        files = "files that a configuration file builds on, each relative to it: as if given before it by --config"
        parser.add_argument("--base", type=list[str] | str | None, default=None, help=files)
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_seed)

    def _set_seed(self) -> None:
        check_seed(self.config[self.subcommand].seed_everything)
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Find `--ckpt_path last`, and miss no checkpoint, and no damage to it, late."""
        config = self.config[self.subcommand]
        config.base = None  # what they say is in the resolved configuration, which is kept
        root = Path(config.trainer.default_root_dir)
        if config.get("ckpt_path") == "last":
            config.ckpt_path = str(newest_intact(root))
        elif config.get("ckpt_path") is not None:
            require_intact(Path(config.ckpt_path))

    def _parse_ckpt_path(self) -> None:
        """Lightning would read hyperparameters out of the checkpoint here; a run's are in its configuration alone."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add what every run has: loggers in one folder, progress, signals, safe checkpoints, its own description."""
        config = self.config[self.subcommand].trainer
        fitting = self.subcommand == "fit"
        if config.logger is None and fitting:
            root = Path(config.default_root_dir)
            parent, name, version = root.parent, root.name, next_version(root)
            tensorboard = TensorBoardLogger(parent, name, version, default_hp_metric=False)
            kwargs["logger"] = [tensorboard, CSVLogger(parent, name, version)]
        elif config.logger is None:
            kwargs["logger"] = False
        trainer: pl.Trainer = super().instantiate_trainer(**kwargs)
        return trainer

    def _instantiate_trainer(self, config: Any, callbacks: list[pl.Callback]) -> pl.Trainer:
        fitting = self.subcommand == "fit"
        callbacks = [*callbacks, RoundProgress()]
        if fitting:
            callbacks += [SignalGuard(), Linter(), RunFolder(self._args)]
            chosen = config.get("callbacks") or []
            if not any(isinstance(c, ModelCheckpoint) for c in chosen):
                callbacks.append(every_round())
        config["callbacks"] = [self._peers, *(config.get("callbacks") or [])]  # the first to hear of an error
        config["plugins"] = [*(config.get("plugins") or []), SafeCheckpointIO(collective=True)]
        if config.get("strategy") == "fsdp":
            config["strategy"] = ShardedStrategy()  # Lightning's own of this name (FSDP1) can run no rollout
        if isinstance(config["strategy"], ShardedStrategy):
            config["strategy"].check(str(config.get("precision")))
        check_trainer(config)
        with as_one_line("trainer"):
            trainer: pl.Trainer = super()._instantiate_trainer(config, callbacks)
        keep_buffers(trainer.strategy)
        self._peers.attach(trainer)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """End together with the other processes of the run; Lightning calls no `teardown` after an exception."""
        try:
            with self._peers.ending():
                super()._run_subcommand(subcommand)
        finally:
            release_resources(self.trainer, self.model)


class _Settings(GuardlitCLI):
    """Parses a command line and builds nothing."""

    def _set_seed(self) -> None: ...

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...

    def _run_subcommand(self, subcommand: str) -> None: ...


def settings_of(args: list[str]) -> dict[str, Any]:
    """What a command line such as `["fit", "--config", "run.yaml"]` comes to, as plain data; mistakes exit with 2."""
    sys.argv = [sys.argv[0], *args]
    cli = _Settings(args)
    settings: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    return settings[args[0]]  # type: ignore[no-any-return]


def every_round() -> ModelCheckpoint:
    """The two newest rounds' checkpoints: should one turn out to be damaged, there is the one before it.

    The oldest goes once the newest is on disk.
    """
    return ModelCheckpoint(
        filename="round_{epoch:05d}",
        auto_insert_metric_name=False,
        monitor="step",
        mode="max",
        save_top_k=2,
        save_on_train_epoch_end=True,
    )


def _seed(value: bool | int) -> int:
    return 42 if isinstance(value, bool) else value


def main(args: list[str]) -> None:
    """Run a command line such as `["fit", "--config", "run.yaml"]`; raises `GuardlitError` for a user's mistake."""
    _quieten()
    try:
        with report_to_launcher():
            GuardlitCLI(args)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning turns into an exit code of its own
            raise KeyboardInterrupt from None
        raise
    except Interrupted as stop:
        print(f"guardlit {args[0]}: {stop}", file=sys.stderr)
        raise SystemExit(128 + stop.signum) from None
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        where = f" ({error.filename})" if error.filename else ""
        told = f"{os.strerror(error.errno)}{where}; once that is mended, go on with --ckpt_path last"
        raise GuardlitError(told) from error
    except MisconfigurationException as error:  # how Lightning and the callbacks name a user's mistake
        raise GuardlitError(str(error)) from error


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""What the system says where a log, a picture or a table cannot be written; checkpoints say more by themselves."""

MEANT = (
    ".*does not have many workers.*",
    ".*dataloader is not resumable.*",
    ".*module\\(s\\) in eval mode at the start of training.*",
    ".*You have overridden `transfer_batch_to_device`.*",
    ".*Experiment logs directory .* exists and is not empty.*",  # run.json and the like; metrics.csv is new
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The dirpath has changed from .*",  # a resumed run has a folder of its own
)
"""What libraries warn of although it is meant, or is theirs alone."""


HINTS = ("Tip: ", "that has Tensor Cores")
"""What Lightning advises; TF32 is `trainer.tf32`, off for a reason."""


def _quieten() -> None:
    for message in MEANT:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning, module="(diffusers|transformers|peft).*")
    for name in ("httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not any(hint in record.getMessage() for hint in HINTS))
