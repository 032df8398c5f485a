"""A run's settings as a file that every command takes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from guardlit.config.bases import KEY

SECTIONS = ("seed_everything", "trainer", "model", "data")
"""What all commands have in common; the others are options of a single one."""

OPTIONS = ("ckpt_path", "weights_only", "verbose")
"""Options of some commands that Lightning's own `config.yaml`, and that of earlier versions, also holds."""


class SavedConfig(SaveConfigCallback):
    """Writes `config.yaml` into the folder of a run; a command without a folder leaves none.

    It holds settings and not the command's own options: `run.json` says which checkpoint a run resumed from.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file."""
        if trainer.log_dir is not None and trainer.is_global_zero:
            text = sections(self, SECTIONS)
            Path(trainer.log_dir, self.config_filename).write_text(text, encoding="utf-8")


def sections(saved: SaveConfigCallback, names: Collection[str]) -> str:
    """Some sections of a configuration, as YAML."""
    settings: dict[str, Any] = yaml.safe_load(saved.parser.dump(saved.config, skip_none=False))
    return yaml.safe_dump({name: settings[name] for name in names}, sort_keys=False, allow_unicode=True)


def without_options(text: str, known: Collection[str]) -> str:
    """A configuration file's text without the `OPTIONS` that the command does not have, and without `base`.

    What it builds on has been read before it by then.

    Args:
        text: of the file.
        known: names of the command's own options.
    """
    unwanted = {*OPTIONS, KEY} - set(known)
    if not any(name in text for name in unwanted):
        return text
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:  # the parser says so
        return text
    if not isinstance(root, yaml.MappingNode) or not any(key.value in unwanted for key, _ in root.value):
        return text
    root.value = [(key, value) for key, value in root.value if key.value not in unwanted]
    return str(yaml.serialize(root, Dumper=yaml.SafeDumper))
