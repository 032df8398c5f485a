"""Whether a run that was disturbed ended as the one that was not: bit by bit, and in what it logged."""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.lab import UPDATES, checkpoints
from guardlit.checkpoints.shards import read_shards

STATE = (
    "state_dict",
    "optimizer_states",
    "lr_schedulers",
    "callbacks",
    "guardlit",
    "PromptDataModule",
    "global_step",
    "epoch",
)
"""Entries of a checkpoint that decide how a run continues."""

Row = dict[str, str]
_COUNTED = re.compile("time/|reward/.*/")
_KINDS = {
    "round": re.compile("average_reward/|reward|rollout/|round$|train/clip_off_policy$"),
    "train/loss": re.compile("train/(?!clip_off_policy$)"),
    "val/reward": re.compile("val/"),
}
"""A key that is logged after every round, update or validation, and all keys of that kind."""


def differing(folder: Path, undisturbed: Path) -> list[str]:
    """Names of everything in which two runs' states after the last update differ by a single bit."""
    mine, theirs = (_leaves(_final(f)) for f in (folder, undisturbed))
    if not theirs or not any(isinstance(v, torch.Tensor) for v in theirs.values()):
        raise RuntimeError(f"{undisturbed} has no tensors to compare")
    return sorted(k for k in mine.keys() | theirs.keys() if not _same(mine.get(k), theirs.get(k)))


def distance(folder: Path, undisturbed: Path) -> float:
    """Largest difference between two runs' final weights, relative to the largest weight."""
    mine, theirs = (_final(f)["state_dict"] for f in (folder, undisturbed))
    largest = max(float(v.abs().max()) for v in theirs.values())
    return max(float((mine[k] - v).abs().max()) for k, v in theirs.items()) / largest


def _final(folder: Path) -> dict[str, Any]:
    last = [p for p in checkpoints(folder) if p.stem == f"update_{UPDATES}"]
    if not last:
        return {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process reads all shards
        checkpoint = read_shards(last[-1]) if last[-1].is_dir() else torch.load(last[-1], weights_only=True)
    return {k: checkpoint[k] for k in STATE}


def _leaves(tree: object, name: str = "") -> dict[str, object]:
    """What a state is made of; where a ModelCheckpoint has written its files is not part of it."""
    if isinstance(tree, Mapping):
        kept = {k: v for k, v in tree.items() if not str(k).startswith("ModelCheckpoint")}
        return {n: v for k, item in kept.items() for n, v in _leaves(item, f"{name}/{k}").items()}
    if isinstance(tree, list | tuple):
        return {n: v for i, item in enumerate(tree) for n, v in _leaves(item, f"{name}/{i}").items()}
    return {name: tree}


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def logged(folder: Path, undisturbed: Path) -> tuple[int, list[str]]:
    """The logs of all starts of a run, compared with the undisturbed run's.

    Returns:
        How many of the undisturbed run's lines are missing, and the values that differ; durations are not compared.
    """
    theirs = dict(_lines(_rows(undisturbed)))
    mine = list(_lines(_rows(folder)))
    wrong = [f"{key}: {row}" for key, row in mine if key in theirs and theirs[key] != row]
    return len(theirs.keys() - {key for key, _ in mine}), wrong


def _rows(folder: Path) -> Iterator[Row]:
    for file in sorted((folder / "runs").glob("version_*/metrics.csv")):
        with file.open(newline="") as opened:
            yield from csv.DictReader(opened)


def _lines(rows: Iterator[Row]) -> Iterator[tuple[tuple[str, str], Row]]:
    """What updates, rounds and validations log, by kind and step, without what clocks and scorers count.

    All of a step is one row, and a run that was stopped within it has parts of that row in two files.
    """
    for row in rows:
        values = {k: v for k, v in row.items() if v and k is not None and not _COUNTED.match(k)}
        for kind, keys in _KINDS.items():
            if kind in values:
                yield (kind, values["step"]), {k: v for k, v in values.items() if keys.match(k)}
