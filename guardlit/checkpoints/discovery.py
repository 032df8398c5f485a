"""Finds checkpoints on disk: the newest of all runs, and the intact one before a corrupt one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from guardlit.checkpoints.integrity import find_corruption, load_metadata
from guardlit.checkpoints.manifest import MANIFEST
from guardlit.errors import GuardlitError

DATA_KEY = "PromptDataModule"
"""The entry of a checkpoint that holds the data's state: Lightning names it after the DataModule's class."""


def newest_intact(root: Path) -> Path:
    """The newest intact checkpoint of any run under `root`; a warning names every newer one that is corrupt.

    The newest is the furthest of the latest run, whatever the clock says: runs are counted (`version_K`), and within a
    run the update, the round and the position in it say how far a checkpoint is. The answer depends on the files alone,
    so every rank finds the same.

    Raises:
        GuardlitError: there is none, or none is intact.
    """
    corrupt: dict[Path, str] = {}
    for path in newest_first(root):
        if (reason := find_corruption(path)) is None:
            for other, why in corrupt.items():
                rank_zero_warn(f"checkpoint {other} is corrupt and not used ({why}); {path} is used instead")
            return path
        corrupt[path] = reason
    if corrupt:
        each = "; ".join(f"{path} ({why})" for path, why in corrupt.items())
        raise GuardlitError(f"--ckpt_path last: none of the checkpoints under {root} is intact: {each}")
    elsewhere = max(root.glob("**/checkpoints/[!.]*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)
    hint = f"; if you mean {elsewhere}, give its path" if elsewhere else ""  # of a version that followed its logger
    raise GuardlitError(f"--ckpt_path last: no checkpoint under {root}/version_*/checkpoints{hint}")


def newest_first(root: Path) -> Iterator[Path]:
    """Checkpoints of all runs under `root`, intact or corrupt."""
    runs = [path for path in root.glob("version_*") if path.name.removeprefix("version_").isdigit()]
    for run in sorted(runs, key=lambda path: int(path.name.removeprefix("version_")), reverse=True):
        yield from _furthest_first(checkpoints_in(run / "checkpoints"))


def checkpoints_in(folder: Path) -> Iterator[Path]:
    """The checkpoints of a folder: also those below it, where a metric in their name brought a slash with it."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix == ".ckpt" and not path.name.startswith("."):
            yield path
        elif path.is_dir() and not path.name.startswith("."):
            yield from checkpoints_in(path)


def _furthest_first(checkpoints: Iterable[Path]) -> list[Path]:
    def key(path: Path) -> tuple[tuple[int, int, int], int]:
        return _progress(path), path.stat().st_mtime_ns

    return sorted(checkpoints, key=key, reverse=True)


def _progress(path: Path) -> tuple[int, int, int]:
    """Updates, finished rounds and position in the next; a corrupt checkpoint comes first, so that it is reported."""
    try:
        content = load_metadata(path)
        data = content.get(DATA_KEY, {})
        return int(content["global_step"]), int(data.get("round", 0)), int(data.get("transitions", 0))
    except Exception:
        return sys.maxsize, 0, 0


def siblings(path: Path) -> list[Path]:
    """The other checkpoints of the same runs or, outside of a run's folder, of the same folder; newest first."""
    runs = runs_of(path)
    others = path.absolute().parent.glob("[!.]*.ckpt")
    return _furthest_first(others) if runs is None else list(newest_first(runs))


def runs_of(path: Path) -> Path | None:
    """The folder of runs, `runs` in `runs/version_K/checkpoints/...`, that a path lies in; None outside of a run."""
    for folder in path.absolute().parents:
        if folder.name == "checkpoints" and folder.parent.name.startswith("version_"):
            return folder.parent.parent
    return None


def intact_before(path: Path) -> Path | None:
    """The newest intact checkpoint among those older than `path`."""
    others = siblings(path)
    place = others.index(path.absolute()) + 1 if path.absolute() in others else 0
    return next((other for other in others[place:] if find_corruption(other) is None), None)


def require_intact(path: Path) -> None:
    """Raise `GuardlitError` for a checkpoint that is missing or corrupt, naming the intact one before it."""
    if not path.exists():
        raise GuardlitError(f"checkpoint {path} does not exist")
    if (reason := find_corruption(path)) is not None:
        raise_corrupt(path, reason)


def raise_corrupt(path: Path, reason: str) -> None:
    """Raise `GuardlitError` for what is no checkpoint, or for a corrupt one, naming the intact one before it."""
    if _is_exported(path):
        raise GuardlitError(
            f"{path} holds exported weights, not a checkpoint: give a LoRA as model.policy.lora.start, a pipeline as "
            "model.policy.model, or either to guardlit evaluate --ckpt"
        )
    other = intact_before(path)
    rest = f"; the one before it is intact: {other}" if other else ""
    raise GuardlitError(f"checkpoint {path} is corrupt ({reason}){rest}")


def _is_exported(path: Path) -> bool:
    """Whether a path is a LoRA, a pipeline, or the folder that `guardlit export` writes."""
    if not path.is_dir():
        return path.suffix == ".safetensors"
    signs = ("*.safetensors", "adapter_config.json", "model_index.json", "*/*.safetensors")
    return not (path / MANIFEST).is_file() and any(next(path.glob(sign), None) for sign in signs)
