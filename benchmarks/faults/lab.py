"""The tiny runs of the campaign: one model folder, a configuration for each setting, and its undisturbed run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from runs import config
from tiny_folders import make_sd3

from benchmarks.faults.processes import Launch, Prepare

UPDATES = 12
"""Of a run: 3 rounds of 4."""


@dataclass(frozen=True)
class Setting:
    """How a run is made.

    Attributes:
        processes: of it.
        full: whether all weights train, or a LoRA.
        strategy: of several processes.
        folders: whether checkpoints are folders of shards.
        timeout: seconds that a collective may take.
    """

    processes: int
    full: bool
    strategy: str = "auto"
    folders: bool = False
    timeout: int | None = None

    @property
    def name(self) -> str:
        """For tables and folders."""
        by = self.strategy if self.processes > 1 else "single"
        return f"{self.processes}-{by}-{'full' if self.full else 'lora'}{'-folders' if self.folders else ''}"


ONE = Setting(1, False)
TWO = Setting(2, False, "ddp")
SHARDED = Setting(2, False, "fsdp")
FOLDERS = Setting(2, True, "fsdp", folders=True)
SETTINGS = {
    s.name: s
    for s in (
        ONE,
        Setting(1, True),
        TWO,
        Setting(2, True, "ddp"),
        SHARDED,
        Setting(2, True, "fsdp"),
        FOLDERS,
    )
}


class Lab:
    """A folder with the model, and the undisturbed runs that were needed so far.

    Args:
        folder: for everything that the campaign writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = self.folder / "model"
        if not self.model.exists():
            make_sd3(self.model)
        self._undisturbed: dict[str, Path] = {}

    def write(self, setting: Setting, name: str, **changes: object) -> Path:
        """Write the YAML of a run into a new folder, `FOLDER/run.yaml`; returns FOLDER.

        Args:
            setting: of the run.
            name: of the folder.
            changes: of the configuration, as in `tests/support/runs.py`; `prompts`, if there, are the run's.
        """
        folder = self.folder / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        prompts = changes.pop("prompts", None)
        config(folder, self.model, **(_settings(setting) | changes))
        if prompts is not None:
            (folder / "prompts.txt").write_text(str(prompts))
        return folder

    def args(self, setting: Setting, folder: Path, *more: object) -> list[str]:
        """`fit` with a folder's YAML, from its last checkpoint if there is one, as a user would write it."""
        args = ["fit", "--config", str(folder / "run.yaml")]
        if checkpoints(folder):
            args += ["--ckpt_path", "last"]
        if setting.processes > 1:
            args += [f"--trainer.devices={setting.processes}", f"--trainer.strategy={setting.strategy}"]
        if setting.folders:
            sharded = "--trainer.strategy=guardlit.training.sharded_strategy.ShardedStrategy"
            args += [sharded, "--trainer.strategy.save_distributed_checkpoint=true"]
        if setting.timeout:
            args += ["--trainer.strategy=DDPStrategy", f"--trainer.strategy.timeout=0:00:{setting.timeout:02d}"]
        return [*args, *map(str, more)]

    def start(
        self, setting: Setting, folder: Path, *more: object, prepare: Prepare | None = None, agent: bool = True
    ) -> Launch:
        """Start or resume a folder's run; more arguments may follow."""
        args = self.args(setting, folder, *more)
        return Launch(args, said(folder), setting.processes, prepare, agent)

    def undisturbed(self, setting: Setting, **changes: object) -> Path:
        """The folder of this setting's undisturbed run; made once for each kind of changes."""
        key = json.dumps(changes, sort_keys=True)
        name = f"undisturbed-{setting.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
        if name not in self._undisturbed:
            folder = self.write(setting, name, **changes)
            ended = self.start(setting, folder).wait()
            if any(ended.codes):
                raise RuntimeError(f"the undisturbed run {name} failed: {json.dumps(ended.last)}")
            self._undisturbed[name] = folder
        return self._undisturbed[name]


def checkpoints(folder: Path) -> list[Path]:
    """Of all starts of a run, oldest first."""
    return sorted((folder / "runs").glob("version_*/checkpoints/*.ckpt"), key=lambda p: p.stat().st_mtime_ns)


def said(folder: Path) -> Path:
    """The folder of the output of a run's next start."""
    return folder / f"said_{len(list(folder.glob('said_*')))}"


def last_update(folder: Path) -> int:
    """The update whose checkpoint was written last; 0 before the first."""
    updates = (p.stem.removeprefix("update_") for p in checkpoints(folder) if p.stem.startswith("update_"))
    return max(map(int, updates), default=0)


def _settings(setting: Setting) -> dict[str, object]:
    """A checkpoint after every update and every round; all state that a run can have."""
    updates = {"filename": "update_{step}", "every_n_train_steps": 1, "auto_insert_metric_name": False}
    rounds = "guardlit.training.round_checkpoint.RoundCheckpoint"
    changes: dict[str, object] = {
        "trainer__callbacks": [
            {"class_path": "guardlit_callbacks.TrainableEMA"},
            {"class_path": "ModelCheckpoint", "init_args": {**updates, "save_top_k": -1}},
            {"class_path": rounds, "init_args": {"save_top_k": -1}},
        ],
        "data__micro_batch": 4 // setting.processes,
    }
    if setting.full:
        changes["model__policy__init_args__lora"] = None
        changes["model__policy__init_args__reference"] = True
        changes["model__kl"] = {"weight": 0.1}
        changes["model__old_velocity"] = "recomputed"
    else:
        changes["model__objective"] = {"class_path": "GRPOGuard", "init_args": {"clip_range": "auto"}}
        decay = {"gamma": 0.9}
        changes["model__lr_scheduler"] = {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": decay}
    return changes
