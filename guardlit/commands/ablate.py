"""`guardlit ablate`: compare objectives, on one rollout without training or by training with each."""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guardlit.commands.first_look import check
from guardlit.config.console import Parser
from guardlit.config.library_errors import LARGEST_SEED
from guardlit.errors import GuardlitError, did_you_mean
from guardlit.files import atomic_write
from guardlit.objective import PRESETS

NAMES = [preset.__name__ for preset in PRESETS]
RECORD = "ablate.json"
"""In a run's folder: the settings it was started with, and whether it is finished."""


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

    def finished(self) -> bool:
        """Whether the training is finished; raises `GuardlitError` where the folder holds something else."""
        record = self.folder / RECORD
        if not record.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
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

    def record(self, finished: bool) -> None:
        """Note the settings and how far the run is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        document = {"finished": finished, "command": ["guardlit", *self.arguments], "settings": self.settings}
        with atomic_write(self.folder / RECORD) as file:
            file.write(f"{json.dumps(document, indent=1)}\n".encode())


def main(args: list[str]) -> None:
    """Run `guardlit ablate`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: an option that cannot be used, or a training that failed.
    """
    options, rest = _parse(args[1:])
    check(["fit", *rest])
    if options.analyze:
        _analyze(options, rest)
    else:
        _train(options, rest)


def _parse(args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    epilog = "All other options, --config first of them, are those of `guardlit fit`."
    parser = Parser("guardlit ablate", description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("--objectives", type=_objectives, default=NAMES, metavar="A,B", help=f"of {', '.join(NAMES)} (default: all)")
    add("--clip", type=_clips, default={}, metavar="A=1e-3,B=none", help="clip ranges (default: the configuration's "
        "for its own objective, the published ones for the others)")  # fmt: skip
    add("--out", type=Path, default=Path("runs/ablation"), help="folder for what is written (default: %(default)s)")
    add("--analyze", action="store_true", help="evaluate the objectives on one and the same rollout, without training")
    add("--updates", type=int, metavar="K", help="with --analyze: real updates between the rollout and the evaluation "
        "(default: all of the round's but the last)")  # fmt: skip
    add("--seeds", type=_seeds, default=[42], metavar="S,T", help="seeds to train each objective with (default: 42)")
    add("--dry-run", action="store_true", help="print what would be trained")
    options, rest = parser.parse_known_args(args)
    if options.updates is not None and not options.analyze:
        raise GuardlitError("--updates belongs to --analyze; a training takes data.updates_per_round")
    return options, rest


def _preset(name: str) -> str:
    if name not in NAMES:
        raise GuardlitError(f"unknown objective '{name}': {did_you_mean(name, NAMES, 'it is one of')}")
    return name


def _objectives(text: str) -> list[str]:
    return list(dict.fromkeys(_preset(name.strip()) for name in text.split(",")))


def _clips(text: str) -> dict[str, float | None]:
    clips: dict[str, float | None] = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        try:
            clips[_preset(name.strip())] = None if value == "none" else float(value)
        except ValueError:
            raise GuardlitError(f"--clip {item}: expected NAME=RANGE, such as FlowGRPO=1e-3 or FlowGRPO=none") from None
    bad = next((f"{n}={c}" for n, c in clips.items() if c is not None and not (0 < c < 1 and math.isfinite(c))), None)
    if bad:
        raise GuardlitError(f"--clip {bad}: a clip range lies between 0 and 1")
    return clips


def _seeds(text: str) -> list[int]:
    seeds = [seed.strip() for seed in text.split(",")]
    bad = next((seed for seed in seeds if not (seed.isascii() and seed.isdigit() and int(seed) <= LARGEST_SEED)), None)
    if bad is not None:
        raise GuardlitError(f"--seeds {text}: '{bad}' is not a whole number from 0 to {LARGEST_SEED}")
    return list(dict.fromkeys(map(int, seeds)))


# one rollout ----------------------------------------------------------------------------------------------------------


def _analyze(options: argparse.Namespace, rest: list[str]) -> None:
    from guardlit.commands.lightning_cli import main as run

    own = [
        "--objectives",
        json.dumps(options.objectives),
        "--out",
        str(options.out),
        "--clip",
        json.dumps(options.clip),
    ]
    if options.updates is not None:
        own += ["--updates", str(options.updates)]
    arguments = ["ablate", *rest, *own]
    sys.argv = [sys.argv[0], *arguments]
    run(arguments)


# trainings ------------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace, rest: list[str]) -> None:
    for taken, option in {"model.objective": "--objectives and --clip", "seed_everything": "--seeds",
                          "trainer.default_root_dir": "--out", "ckpt_path": "what is in --out"}.items():  # fmt: skip
        if any(a.removeprefix("--").split("=")[0].startswith(taken) for a in rest if a.startswith("--")):
            raise GuardlitError(f"--{taken} is what {option} is for")
    runs = _plan(options, rest)
    states = [run.finished() for run in runs]
    for run, finished in zip(runs, states, strict=True):
        print(f"{run.folder}: {_describe(run, finished)}", flush=True)
    if options.dry_run:
        return
    for run, finished in zip(runs, states, strict=True):
        if not finished:
            _fit(run)
    _report(runs, options.out / "report")


def _plan(options: argparse.Namespace, rest: list[str]) -> list[Run]:
    """All runs, objective by objective; their settings are checked before the first of them starts."""
    from guardlit.commands.lightning_cli import settings_of

    configured = settings_of(["fit", *rest])["model"]["objective"]
    runs = []
    for name in options.objectives:
        objective: dict[str, Any] = {"class_path": f"guardlit.objective.{name}", "init_args": {}}
        if configured["class_path"] == objective["class_path"]:
            objective["init_args"] |= configured.get("init_args", {})
        if name in options.clip:
            objective["init_args"]["clip_range"] = options.clip[name]
        for seed in options.seeds:
            folder = options.out / name / f"seed_{seed}"
            own = ["--model.objective", json.dumps(objective), "--seed_everything", str(seed)]
            arguments = ["fit", *rest, *own, "--trainer.default_root_dir", str(folder)]
            runs.append(Run(folder, arguments, settings_of(arguments)))
    return runs


def _describe(run: Run, finished: bool) -> str:
    clip = run.settings["model"]["objective"]["init_args"]["clip_range"]
    if finished:
        return f"clip {clip}, finished, is skipped"
    checkpoint = run.checkpoint()
    return f"clip {clip}, " + (f"resumes from {checkpoint}" if checkpoint else "starts")


def _fit(run: Run) -> None:
    """Train in a separate process, which leaves no state behind in this one."""
    print(f"\n{run.folder}", flush=True)
    run.record(finished=False)
    checkpoint = run.checkpoint()
    arguments = [*run.arguments, *(["--ckpt_path", str(checkpoint)] if checkpoint else [])]
    code = _wait([sys.executable, "-m", "guardlit", *arguments])
    if code > 128:  # stopped by a signal, and said so
        raise SystemExit(code)
    if code != 0:
        raise GuardlitError(f"{run.folder} failed with exit code {code}; the same command skips what is finished")
    run.record(finished=True)


def _wait(command: Sequence[str]) -> int:
    """Run a command and return its exit code; signals are left to it, since it has a checkpoint to write."""
    with subprocess.Popen(command) as process:
        # Ctrl-C signals both processes; `kill` and batch systems signal only this one, which forwards the signal
        before = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None)}
        for number in (signal.SIGTERM, signal.SIGUSR1):
            before[number] = signal.signal(number, lambda received, _: process.send_signal(received))
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _report(runs: Iterable[Run], out: Path) -> None:
    """Figures and one page of all runs; the parts of one that was interrupted are joined."""
    from guardlit.commands.report import main as report

    folders, labels = [], []
    for run in runs:
        versions = [v for v in run.folder.glob("version_*") if (v / "metrics.csv").is_file()]
        versions.sort(key=lambda v: int(v.name.removeprefix("version_")))
        folders.append("+".join(map(str, versions)))
        labels += ["--label", run.folder.parent.name]
    report(["report", *folders, "--out", str(out), *labels])


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, item in tree.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}
