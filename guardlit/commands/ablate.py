"""`guardlit ablate`: compare objectives, on one rollout without training or by training with each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from guardlit.ablation.options import NAMES, clips, jobs, learning_rates, objectives, seeds
from guardlit.ablation.pool import Pool
from guardlit.ablation.runs import Run, plan_run, preset_of
from guardlit.commands.first_look import check
from guardlit.config.console import Parser
from guardlit.errors import GuardlitError

FAILED = 1
"""Exit code where a training failed."""


def main(args: list[str]) -> None:
    """Run `guardlit ablate`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: an option that cannot be used.
        SystemExit: with 1 where a training failed, with 128 + a signal that stopped the trainings.
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
    add("--objectives", type=objectives, default=NAMES, metavar="A,B", help=f"of {', '.join(NAMES)} (default: all of "
        "these), and to train with also recipes such as methods/even_clip")  # fmt: skip
    add("--clip", type=clips, default={}, metavar="A=1e-3,B=none", help="clip ranges, or auto, or auto_per_step; "
        "all=auto for every objective (default: the configuration's for its own objective, the published ones for the "
        "others)")  # fmt: skip
    add("--lr", type=learning_rates, default={}, metavar="A=1e-3,B=5e-4", help="learning rates to train with; "
        "all=1e-3 for every objective (default: the configuration's)")  # fmt: skip
    add("--out", type=Path, default=Path("runs/ablation"), help="folder for what is written (default: %(default)s)")
    add("--analyze", action="store_true", help="evaluate the objectives on one and the same rollout, without training")
    add("--updates", type=int, metavar="K", help="with --analyze: real updates between the rollout and the evaluation "
        "(default: all of the round's but the last)")  # fmt: skip
    add("--seeds", type=seeds, default=[42], metavar="S,T", help="seeds to train each objective with (default: 42)")
    add("--jobs", type=jobs, default=1, metavar="N", help="trainings at a time; the cores are divided "
        "among them (OMP_NUM_THREADS), and their output goes to ablate.log in their folders")  # fmt: skip
    add("--dry-run", action="store_true", help="print what would be trained")
    options, rest = parser.parse_known_args(args)
    if options.updates is not None and not options.analyze:
        raise GuardlitError("--updates belongs to --analyze; a training takes data.updates_per_round")
    if options.analyze and (method := next((n for n in options.objectives if n not in NAMES), None)):
        raise GuardlitError(f"--analyze compares objectives on one rollout, and {method} changes more: train with it")
    if options.analyze and options.lr:
        raise GuardlitError("--lr belongs to trainings; --analyze makes its updates with the configured optimizer")
    return options, rest


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
    waiting = [run for run in runs if not run.finished()]
    for run in runs:
        print(f"{run.folder}: {_describe(run, finished=run not in waiting)}", flush=True)
    if options.dry_run:
        return
    pool = Pool(options.jobs, lambda line: print(line, flush=True))
    pool.train(waiting)
    if trained := [run for run in runs if run.folder not in pool.failed]:
        _report(trained, options.out / "report")
    if pool.failed:
        for folder, why in pool.failed.items():
            print(f"guardlit ablate: error: {folder} failed: {why}", file=sys.stderr)
        print("guardlit ablate: the same command skips what is finished and resumes the others", file=sys.stderr)
        raise SystemExit(FAILED)


def _plan(options: argparse.Namespace, rest: list[str]) -> list[Run]:
    """All runs, objective by objective; their settings are checked before the first of them starts."""
    from guardlit.commands.lightning_cli import settings_of

    configured = settings_of(["fit", *rest])["model"]["objective"]
    runs = []
    for name in options.objectives:
        arguments, objective = rest, preset_of(name)
        if name not in NAMES:
            arguments = [*rest, "--config", name]
            objective = settings_of(["fit", *arguments])["model"]["objective"]
        elif configured["class_path"] == objective["class_path"]:
            objective["init_args"] |= configured.get("init_args", {})
        if name in options.clip:
            objective["init_args"]["clip_range"] = options.clip[name]
        for seed in options.seeds:
            folder = options.out / name.rpartition("/")[2] / f"seed_{seed}"
            runs.append(plan_run(folder, arguments, objective, seed, settings_of, options.lr.get(name)))
    return runs


def _describe(run: Run, finished: bool) -> str:
    model = run.settings["model"]
    values = f"clip {model['objective']['init_args']['clip_range']}"
    if "--model.optimizer.init_args.lr" in run.arguments:
        values += f", lr {model['optimizer']['init_args']['lr']}"
    if finished:
        return f"{values}, finished, is skipped"
    checkpoint = run.checkpoint()
    return f"{values}, " + (f"resumes from {checkpoint}" if checkpoint else "starts")


def _report(runs: Iterable[Run], out: Path) -> None:
    """Figures and one page of all runs; the parts of one that was interrupted are joined."""
    from guardlit.commands.report import main as report

    folders, labels = [], []
    for run in runs:
        folders.append("+".join(map(str, run.parts())))
        labels += ["--label", run.folder.parent.name]
    report(["report", *folders, "--out", str(out), *labels])
