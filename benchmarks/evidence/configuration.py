"""The YAML files that the evidence trains with: a world's, with more evaluations and thinner output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.evidence.worlds import World

DROPPED = ("SampleGrid", "ExportAtEnd", "OverOptimizationStop")
"""Pictures, exports and advice: no number of the evidence comes from them."""
CALIBRATION = ("TrainableEMA", "RatioDistribution")
"""What places the clip ranges."""
Changes = Mapping[str, Mapping[str, int]]
CHANGED: Changes = {
    "RatioDistribution": {"draw_every": 0},
    "GradientNorm": {"draw_every": 0, "parameters_every": 16},
}
"""Arguments of the world's callbacks: figures are drawn from the arrays later."""
BEST = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {
        "monitor": "gold/average",
        "mode": "max",
        "filename": "best_{step}",
        "auto_insert_metric_name": False,
    },
}
NEWEST = {"class_path": "guardlit.training.round_checkpoint.RoundCheckpoint", "init_args": {"save_top_k": 1}}
REPLACED = ("KLFromBase", "ModelCheckpoint", "RoundCheckpoint")
"""Callbacks that every configuration has once, with these settings."""
EVALUATED = "evaluated_{step}"
"""Name of the checkpoints of full-length runs, one for each evaluation: the pictures are drawn from them."""


def write_configurations(world: World, folder: Path, changes: Changes = CHANGED) -> dict[str, Path]:
    """Write `calibration.yaml`, `training.yaml` and `settings.yaml`, and return them by name.

    Args:
        world: the world.
        folder: for the files.
        changes: arguments of its callbacks, by the callback's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    callbacks = yaml.safe_load(world.config.read_text(encoding="utf-8"))["trainer"]["callbacks"]
    trainer = {"logger": False, "enable_progress_bar": False}  # `metrics.csv` is always written
    kept = [c for c in callbacks if _name(c) not in (*DROPPED, *REPLACED)]
    measured = [*(_changed(c, changes) for c in kept), "guardlit_callbacks.KLFromBase"]
    often = {**trainer, "check_val_every_n_epoch": world.every}
    documents: dict[str, dict[str, Any]] = {
        "calibration": {
            "data": {"val": None},
            "trainer": {**trainer, "callbacks": [_changed(c, changes) for c in callbacks if _name(c) in CALIBRATION]},
        },
        "training": {"trainer": {**often, "callbacks": [*measured, BEST, NEWEST]}},
        "settings": {"trainer": {**often, "callbacks": [*measured, _evaluated(world.every), NEWEST]}},
    }
    paths = {name: folder / f"{name}.yaml" for name in documents}
    for name, path in paths.items():
        document = {"base": [str(world.config)], **documents[name]}
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return paths


def _evaluated(every: int) -> dict[str, Any]:
    """Keeps a checkpoint of each evaluated round."""
    settings = {
        "filename": EVALUATED,
        "auto_insert_metric_name": False,
        "every_n_epochs": every,
        "save_top_k": -1,
        "save_on_train_epoch_end": True,
    }
    return {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": settings}


def _name(callback: Any) -> str:
    path = callback["class_path"] if isinstance(callback, dict) else callback
    return str(path).rpartition(".")[2]


def _changed(callback: Any, changes: Changes) -> Any:
    if (own := changes.get(_name(callback))) is None:
        return callback
    entry = callback if isinstance(callback, dict) else {"class_path": callback}
    return {**entry, "init_args": {**entry.get("init_args", {}), **own}}
