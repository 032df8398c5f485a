"""The folder of a run: no two runs share one."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakKeyDictionary

from guardlit_callbacks.tools.lightning import Trainer

WRITTEN = ("gold", "gold.csv", "gradient", "kl.csv", "over_optimization.json", "ratio", "samples")
"""What these callbacks write into a run's folder."""

_folders: WeakKeyDictionary[Trainer, tuple[object, Path]] = WeakKeyDictionary()
"""By Trainer: its logger when the folder was found, and the folder."""


def run_dir(trainer: Trainer) -> Path | None:
    """The folder that this run's callbacks write into; None where nothing is to be written. Collective.

    A rehearsal (`fast_dev_run`) has none. A class of Trainer that defines `log_dir` names the folder itself. Otherwise
    it is the logger's `log_dir`; for a logger without one, such as W&B's, `<save_dir>/<name>/<version>`, where
    Lightning's `ModelCheckpoint` writes as well; without a logger `<default_root_dir>/lightning_logs/version_K`, with
    the next K. A run that starts afresh gets a new folder, `NAME-K`, in place of one that an earlier run's callbacks
    have written into.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined] # which Lightning sets from outside of the class
        return None
    if type(trainer).log_dir is not Trainer.log_dir:
        return Path(trainer.log_dir) if trainer.log_dir else None
    logger, folder = _folders.get(trainer, (None, None))
    if folder is None or logger is not trainer.logger:
        found = trainer.strategy.broadcast(_find(trainer) if trainer.is_global_zero else None)
        assert found is not None
        folder = Path(found)
        _folders[trainer] = trainer.logger, folder
    return folder


def _find(trainer: Trainer) -> Path:
    logger = trainer.logger
    if logger is None:
        return new_folder(Path(trainer.default_root_dir, "lightning_logs"))
    if log_dir := getattr(logger, "log_dir", None):
        folder = Path(log_dir)
    else:
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder = Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)
    if trainer.ckpt_path is None and any((folder / name).exists() for name in WRITTEN):
        return new_folder(folder.parent, f"{folder.name}-")
    return folder


def new_folder(parent: Path, prefix: str = "version_") -> Path:
    """Makes `parent/prefixK` with the next free K; two processes that call it at once get two folders."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        numbers = (path.name.removeprefix(prefix) for path in parent.iterdir() if path.name.startswith(prefix))
        folder = parent / f"{prefix}{max((int(n) for n in numbers if n.isdigit()), default=-1) + 1}"
        try:
            folder.mkdir()
        except FileExistsError:  # another process made it just now
            continue
        return folder
