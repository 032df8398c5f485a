"""Whole runs through the command line, on the tiny SD3 folder; in this process unless a test needs another."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

PROMPTS = ["a cat on a table", "two dogs", "a red car", "the sky over the sea", "a house"]

EVERY_UPDATE = {
    "class_path": "ModelCheckpoint",
    "init_args": {
        "filename": "update_{step}",
        "every_n_train_steps": 1,
        "save_top_k": -1,
        "auto_insert_metric_name": False,
    },
}
"""A callback that saves a checkpoint after every update."""


def config(folder: Path, model: Path, **changes: object) -> Path:
    """Write a run's YAML: 3 rounds of 2 prompts x 4 images, 4 trained steps, 2 updates, 2 inner epochs."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    settings = {
        "model": {
            "policy": {
                "class_path": "SD3Policy",
                "init_args": {
                    "model": str(model),
                    "resolution": 32,
                    "lora": {"rank": 4, "alpha": 8.0},
                    "max_sequence_length": 16,
                    "cache": None,
                },
            },
            "reward": "JPEGCompressibility",
            "objective": {"class_path": "GRPOGuard", "init_args": {"clip_range": 1e-4}},
            "rollout": {"num_inference_steps": 5, "guidance_scale": 1.0},
            "evaluation": {"num_inference_steps": 2, "guidance_scale": 1.0},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        },
        "data": {
            "train": str(folder / "prompts.txt"),
            "val": str(folder / "prompts.txt"),
            "val_limit": 2,
            "prompts_per_round": 2,
            "images_per_prompt": 4,
            "updates_per_round": 4,
            "inner_epochs": 2,
            "micro_batch": 4,
        },
        "trainer": {
            "max_epochs": 3,
            "accelerator": "cpu",
            "default_root_dir": str(folder / "runs"),
            "callbacks": [{"class_path": "guardlit_callbacks.TrainableEMA"}],
        },
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = settings
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def guardlit(*args: object) -> int:
    """`guardlit ARGS` in this process; its exit code."""
    from guardlit.cli import main

    before, sys.argv = sys.argv, ["guardlit"]
    try:
        return main([str(a) for a in args])
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
        _spare_imports()


@functools.cache
def _spare_imports() -> None:
    """Keep what is imported by now from the collector: each run calls it, for a third of a second a time otherwise."""
    gc.collect()
    gc.freeze()


def start(*args: object, **env: str) -> subprocess.Popen[str]:
    """`guardlit ARGS` as a separate process."""
    command = [sys.executable, "-m", "guardlit", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def two_ranks(*args: object) -> subprocess.CompletedProcess[bytes]:
    """`python ARGS` twice, as the ranks of one run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, args)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(command, env=environment, timeout=240, check=False)


def newest(folder: Path, pattern: str = "*.ckpt") -> Path:
    """The newest checkpoint below a folder."""
    return max(folder.rglob(pattern), key=lambda p: p.stat().st_mtime)


def differing(a: Path, b: Path, keys: Sequence[str] = ("state_dict", "optimizer_states", "callbacks")) -> list[str]:
    """Names of the tensors in which two checkpoints differ by a single bit, or that only one has."""
    one, two = (_tensors({k: torch.load(p, weights_only=True)[k] for k in keys}) for p in (a, b))
    assert one
    names = (name for name in one.keys() | two.keys() if "ModelCheckpoint" not in name)  # it holds files' names
    return sorted(name for name in names if not _same(one.get(name), two.get(name)))


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and torch.equal(a, b)


def _tensors(tree: object, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return {prefix: tree}
    if isinstance(tree, dict):
        return {k: v for key, item in tree.items() for k, v in _tensors(item, f"{prefix}/{key}").items()}
    if isinstance(tree, list | tuple):
        return {k: v for i, item in enumerate(tree) for k, v in _tensors(item, f"{prefix}/{i}").items()}
    return {}
