"""One training of an ablation: its folder, its settings, and how far it is."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from guardlit.errors import GuardlitError
from guardlit.files import atomic_write

RECORD = "ablate.json"
"""In a run's folder: the settings it was started with, whether it is finished, and what it cost."""
LOG = "ablate.log"
"""In a run's folder: the output of a training that runs next to others."""
LOCK = ".ablate.lock"
"""In a run's folder: locked for as long as a training writes there."""


@dataclass(frozen=True)
class Run:
    """One training of an ablation.

    Attributes:
        folder: its `trainer.default_root_dir`.
        arguments: of the command line, without the checkpoint to resume from.
        settings: what they and the configuration come to, as plain data.
    """

    folder: Path
    arguments: list[str]
    settings: dict[str, Any]

    def checkpoint(self) -> Path | None:
        """The newest intact one, if there is any; raises `GuardlitError` where all are corrupt."""
        from guardlit.checkpoints.discovery import newest_first, newest_intact

        return newest_intact(self.folder) if any(newest_first(self.folder)) else None

    def command(self) -> list[str]:
        """The arguments of `guardlit` that start or resume it."""
        checkpoint = self.checkpoint()
        return [*self.arguments, *(["--ckpt_path", str(checkpoint)] if checkpoint else [])]

    def finished(self) -> bool:
        """Whether the training is finished; raises `GuardlitError` where the folder holds something else."""
        record = self.folder / RECORD
        if not record.is_file():
            if self.folder.is_dir() and any(path.name not in (LOCK, LOG) for path in self.folder.iterdir()):
                raise GuardlitError(f"{self.folder} holds files that are not of an ablation: choose another --out")
            return False
        try:
            known = json.loads(record.read_text(encoding="utf-8"))
            before, done = _flat(known["settings"]), bool(known["finished"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GuardlitError(f"{record} is corrupt ({error}): remove {self.folder} to train it again") from error
        now = _flat(self.settings)
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                raise GuardlitError(
                    f"{self.folder} was trained with {key}={before.get(key)}, now it is {now.get(key)}: "
                    "choose another --out, or remove that folder"
                )
        return done

    def record(self, finished: bool, cpu_seconds: float = 0.0) -> None:
        """Note the settings, how far the run is, and the CPU seconds of this part of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {
            "finished": finished,
            "cpu_seconds": round(cpu_seconds + self.cpu_seconds(), 3),
            "command": ["guardlit", *self.arguments],
            "settings": self.settings,
        }
        with atomic_write(self.folder / RECORD) as file:
            file.write(f"{json.dumps(document, indent=1)}\n".encode())

    def cpu_seconds(self) -> float:
        """CPU seconds of all its parts so far, as recorded."""
        record = self.folder / RECORD
        return float(json.loads(record.read_text(encoding="utf-8")).get("cpu_seconds", 0)) if record.is_file() else 0.0

    def parts(self) -> list[Path]:
        """The log folders of its parts, in the order of time: several for a run that was interrupted."""
        found = [v for v in self.folder.glob("version_*") if (v / "metrics.csv").is_file()]
        return sorted(found, key=lambda v: int(v.name.removeprefix("version_")))

    @contextmanager
    def locked(self) -> Iterator[IO[bytes]]:
        """Hold the folder's lock; a process that inherits the file keeps it until it exits.

        Raises:
            GuardlitError: another process trains there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise GuardlitError(
                    f"{self.folder} is being trained by another process: wait for it, or stop it"
                ) from None
            yield file


def plan_run(
    folder: Path,
    rest: Sequence[str],
    objective: dict[str, Any],
    seed: int,
    settings_of: Callable[[list[str]], dict[str, Any]],
    learning_rate: float | None = None,
) -> Run:
    """A run of `guardlit fit` with one objective and seed.

    Args:
        folder: of the run.
        rest: arguments of `guardlit fit`, `--config` first of them.
        objective: `class_path` and `init_args`.
        seed: of everything random.
        settings_of: what a command line comes to, as plain data.
        learning_rate: of the optimizer; the configuration's for None.
    """
    own = ["--model.objective", json.dumps(objective), "--seed_everything", str(seed)]
    if learning_rate is not None:
        own += ["--model.optimizer.init_args.lr", repr(learning_rate)]
    arguments = ["fit", *rest, *own, "--trainer.default_root_dir", str(folder)]
    return Run(folder, arguments, settings_of(arguments))


def preset_of(name: str, **init_args: Any) -> dict[str, Any]:
    """A row of Table 2 as `class_path` and `init_args`."""
    return {"class_path": f"guardlit.objective.{name}", "init_args": init_args}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, item in tree.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}
