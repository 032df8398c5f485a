"""What a run's folder says about the weights that come from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardlit_callbacks.tools.run_files import ReportError, read_json, read_table, read_yaml

from guardlit.config.modules import RUN_FILE

CONFIG, GOLD, DEFINITION = "config.yaml", "gold.csv", "gold.json"
SETTINGS = {
    "objective": "model.objective.class_path",
    "clip range": "model.objective.init_args.clip_range",
    "KL weight": "model.kl.weight",
    "sampler": "model.sde.class_path",
    "rollout steps": "model.rollout.num_inference_steps",
    "rollout guidance scale": "model.rollout.guidance_scale",
    "resolution": "model.policy.init_args.resolution",
    "optimizer": "model.optimizer.class_path",
    "learning rate": "model.optimizer.init_args.lr",
    "LoRA that training started from": "model.policy.init_args.lora.start",
    "prompts per round": "data.prompts_per_round",
    "images per prompt": "data.images_per_prompt",
    "updates per round": "data.updates_per_round",
    "rounds asked for": "trainer.max_epochs",
    "seed": "seed_everything",
}
"""Settings of a card's recipe, and their keys in `config.yaml`."""


@dataclass(frozen=True)
class RunFacts:
    """The files of a run's folder, as far as they are there.

    Attributes:
        config: of `config.yaml`.
        facts: of `run.json`.
        gold: rows of `gold.csv` by column, those of later updates than the weights left out.
        lower_is_better: of the gold scores.
        grid: the last sample grid that is not of later updates.
        missing: files that are not there.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    gold: tuple[Mapping[str, float], ...] = ()
    lower_is_better: tuple[str, ...] = ()
    grid: Path | None = None
    missing: tuple[str, ...] = ("the run's folder",)

    def settings(self) -> dict[str, str]:
        """The recipe, with settings that have no value left out."""
        found = {name: _lookup(self.config, key) for name, key in SETTINGS.items()}
        return {name: _short(value) for name, value in found.items() if value is not None}


def run_folder_of(checkpoint: Path) -> Path | None:
    """The run that wrote a checkpoint, `RUN/checkpoints/NAME.ckpt` or `RUN/NAME.ckpt`; None if it is unknown."""
    path = checkpoint.expanduser().resolve()
    return next((folder for folder in (path.parent.parent, path.parent) if (folder / RUN_FILE).is_file()), None)


def read_run_facts(folder: Path | None, step: int) -> RunFacts:
    """Read a run's folder; files that are missing or cannot be read are left out.

    Args:
        folder: of the run; None if it is unknown.
        step: number of updates of the weights.
    """
    if folder is None:
        return RunFacts()
    missing: list[str] = []

    def read(name: str, reader: Any) -> Any:
        try:
            found = reader(folder / name) if (folder / name).is_file() else {}
        except (ReportError, OSError, ValueError):
            found = {}
        if not found:
            missing.append(name)
        return found

    config, facts, table, definition = (
        read(name, reader)
        for name, reader in ((CONFIG, read_yaml), (RUN_FILE, read_json), (GOLD, read_table), (DEFINITION, _read_object))
    )
    rows = [dict(zip(table, map(float, row), strict=True)) for row in zip(*table.values(), strict=True)]
    grid = _last_grid(folder, step)
    if grid is None:
        missing.append("samples/")
    return RunFacts(
        config=config,
        facts=facts,
        gold=tuple(row for row in rows if row.get("step", 0) <= step),
        lower_is_better=tuple(map(str, definition.get("lower_is_better") or ())),
        grid=grid,
        missing=tuple(name for name in missing if name != DEFINITION),
    )


def _read_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _last_grid(folder: Path, step: int) -> Path | None:
    """The sample grid with the highest step that is not above the weights'."""
    numbers = {path: int(m[1]) for path in folder.glob("samples/step_*.png") if (m := re.search(r"_(\d+)$", path.stem))}
    return max((path for path, number in numbers.items() if number <= step), key=lambda p: numbers[p], default=None)


def _lookup(settings: Any, key: str) -> Any:
    for name in key.split("."):
        if not isinstance(settings, Mapping):
            return None
        settings = settings.get(name)
    return settings


def _short(value: Any) -> str:
    """A value for a table: classes without their package."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.rpartition(".")[2] if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", text) else text
