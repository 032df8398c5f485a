"""`guardlit fit`, `validate`, `sample` and `export`: LightningCLI parses, and `guardlit.Trainer` does the rest."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from jsonargparse.typing import restricted_number_type
from lightning.pytorch.cli import LightningCLI

import guardlit.policies  # so that YAML may say `class_path: SD3Policy`
import guardlit.rewards  # and `class_path: PickScore`
import guardlit.training.recovery.rollback  # noqa: F401 - and `class_path: Rollback`; what else has a short name is used here
from guardlit.checkpoints.discovery import newest_intact, require_intact
from guardlit.commands.trainer import Trainer
from guardlit.config.library_errors import LARGEST_SEED, user_errors
from guardlit.config.parser import GuardlitParser
from guardlit.config.saved import SavedConfig
from guardlit.data.datamodule import PromptDataModule
from guardlit.processes.rank_errors import report_to_launcher
from guardlit.training.defaults import DEFAULTS
from guardlit.training.module import GRPOModule
from guardlit.training.quiet import quiet_libraries

# Lightning's own defaults, such as the interval of Timer, which PyYAML cannot write
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_str(value.value))

Seed = restricted_number_type("Seed", int, [(">=", 0), ("<=", LARGEST_SEED)], docstring="A seed that numpy accepts.")


class GuardlitCLI(LightningCLI):
    """The command line of the module, the prompts and the Trainer."""

    def __init__(self) -> None:
        super().__init__(
            GRPOModule,
            PromptDataModule,
            trainer_class=Trainer,
            trainer_defaults=DEFAULTS,
            save_config_callback=SavedConfig,
            seed_everything_default=42,
            auto_configure_optimizers=False,
            parser_class=GuardlitParser,
            parser_kwargs={"prog": "guardlit", "default_env": True, "env_prefix": "GUARDLIT"},
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's fit and validate, and guardlit's own methods of its Trainer: of them the one that is called.

        Parsers of all six take 0.26 CPU seconds more.
        """
        own = {"model", "datamodule"}
        lightning = LightningCLI.subcommands()
        more = dict.fromkeys(("sample", "export", "evaluate", "ablate"), own)
        commands = {"fit": lightning["fit"], "validate": lightning["validate"], **more}
        called = sys.argv[1] if len(sys.argv) > 1 else ""
        return {called: commands[called]} if called in commands else commands

    def add_default_arguments_to_parser(self, parser: Any) -> None:
        """One seed for everything, of the range that numpy accepts."""
        text = "seed of everything random; true draws one, false sets none and leaves data.seed at its default"
        parser.add_argument("--seed_everything", type=bool | Seed, default=self.seed_everything_default, help=text)

    def add_arguments_to_parser(self, parser: Any) -> None:
        """The seed of the data."""
        parser.link_arguments("seed_everything", "data.seed", compute_fn=_data_seed)

    def before_instantiate_classes(self) -> None:
        """Find `--ckpt_path last`, and refuse a missing or corrupt checkpoint before anything loads."""
        config = self.config[self.subcommand]
        if config.get("ckpt_path") == "last":
            config.ckpt_path = str(newest_intact(Path(config.trainer.default_root_dir)))
        elif config.get("ckpt_path") is not None:
            require_intact(Path(config.ckpt_path))

    def _parse_ckpt_path(self) -> None:
        """Lightning would read hyperparameters from the checkpoint here; a run's are in its configuration alone."""


class _Parsed(Exception):  # noqa: N818 - not an error
    """Ends a `_ParsingCLI` once it has parsed."""

    def __init__(self, parser: GuardlitParser, config: Namespace) -> None:
        super().__init__()
        self.parser, self.config = parser, config


class _ParsingCLI(GuardlitCLI):
    """Parses a command line and builds nothing."""

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, and stop."""
        super().parse_arguments(parser, args)
        raise _Parsed(parser, self.config)


def parse(args: list[str]) -> tuple[GuardlitParser, Namespace]:
    """Parser and configuration of a command line such as `["fit", "--config", "run.yaml"]`; mistakes exit with 2."""
    sys.argv = [sys.argv[0], *args]
    try:
        _ParsingCLI()
    except _Parsed as parsed:
        return parsed.parser, parsed.config
    raise AssertionError("parse_arguments was not called")


def settings_of(args: list[str]) -> dict[str, Any]:
    """What a command line such as `["fit", "--config", "run.yaml"]` comes to, as plain data; mistakes exit with 2."""
    parser, config = parse(args)
    settings: dict[str, Any] = yaml.safe_load(parser.dump(config, skip_none=False))
    return settings[args[0]]  # type: ignore[no-any-return]


def _data_seed(value: bool | int) -> int:
    return 42 if isinstance(value, bool) else int(value)


def main(args: list[str]) -> None:
    """Run a command line such as `["fit", "--config", "run.yaml"]`; raises `GuardlitError` for a user's mistake.

    Args:
        args: the command and its options, the same as in `sys.argv`, which Lightning reads.
    """
    quiet_libraries()
    try:
        with user_errors(), report_to_launcher():
            GuardlitCLI()
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning turns into an exit code
            raise KeyboardInterrupt from None
        raise
