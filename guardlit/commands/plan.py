"""`guardlit plan`: print what a run will cost, and what its configuration cannot do, before any weights load."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardlit.commands.first_look import check
from guardlit.config.console import Parser, show, table
from guardlit.errors import GuardlitError

if TYPE_CHECKING:
    from guardlit.planning.estimate import Estimate
    from guardlit.planning.run import PlannedRun
    from guardlit.training.linter import Finding

Row = tuple[str, ...]
NO_PROMPTS = "hf:prompts/not-set"
"""Of a recipe that leaves its prompts to the user: counted as one round's, as those of a data set on the hub are."""


def main(args: list[str]) -> None:
    """Run `guardlit plan`.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: an option that cannot be used, or a configuration that no run can have.
    """
    options, rest = _parse(args[1:])
    if options.json:
        with _writing(options.json):  # before the seconds that it takes
            options.json.parent.mkdir(parents=True, exist_ok=True)
            if options.json.is_dir():
                raise IsADirectoryError(0, "it is a folder")
    check(["fit", *rest])
    _plan(options, planned(rest))


def _plan(options: argparse.Namespace, run: PlannedRun) -> None:
    from guardlit.planning.estimate import estimate
    from guardlit.training.limits.arguments import check_arguments
    from guardlit.training.limits.settings import check_precision
    from guardlit.training.linter import LintFacts, lint

    check_arguments(run.trainer)
    check_precision(run.precision, run.module.policy.forward_dtype)
    run.check_pairs()
    document: dict[str, Any] = {"run": _run(run)}
    settings = (run.module, run.plan, run.precision, run.on_gpu, run.callbacks)
    _refuse(lint(LintFacts.of(*settings, loaded=False)))  # what cannot run cannot be measured
    try:
        found: Estimate | None = estimate(run)
    except GuardlitError as error:  # the model is not at hand: what does not depend on it can still be said
        found, document["missing"] = None, str(error)
    findings = lint(LintFacts.of(*settings, loaded=found is not None))
    document["findings"] = [asdict(finding) for finding in findings]
    if found is not None:
        document |= _costs(run, found, options.tflops, options.mfu)
        document |= {"published": model} if (model := run.module.policy.sizes_of) else {}
    _print(run, document)
    if options.json:
        with _writing(options.json):
            options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    _refuse(findings)


def planned(arguments: list[str]) -> PlannedRun:
    """The run of `guardlit fit ARGUMENTS`, not started; mistakes exit with 2, as there."""
    from guardlit.commands.lightning_cli import parse
    from guardlit.planning.run import PlannedRun

    parser, config = parse(["fit", f"--data.train={NO_PROMPTS}", *arguments])  # whatever follows replaces it
    built = parser.instantiate_classes(config)["fit"]
    trainer = vars(built.trainer)
    found = trainer.get("callbacks") or []
    callbacks = list(found) if isinstance(found, list | tuple) else [found]
    return PlannedRun(built.model, built.data, trainer, callbacks)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GuardlitError(f"--json {path} cannot be written: {error.strerror}") from error


def _refuse(findings: Sequence[Finding]) -> None:
    for finding in findings:
        if finding.fatal:
            raise GuardlitError(finding.text)


def _parse(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    epilog = "All other options, --config first of them, are those of `guardlit fit`."
    parser = Parser("guardlit plan", description=__doc__, epilog=epilog)
    add = parser.add_argument
    add("--tflops", type=float, default=400.0, help="peak rate of a device in TFLOP/s (default: %(default)s)")
    add("--mfu", type=float, default=0.4, help="fraction of it that is reached (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write all numbers here, too: bytes, FLOP, seconds")
    options, rest = parser.parse_known_args(args)
    if not 0 < options.tflops < math.inf or not 0 < options.mfu <= 1:
        raise GuardlitError(f"--tflops {options.tflops:g} must be positive and --mfu {options.mfu:g} lie in (0, 1]")
    return options, rest


# the numbers ----------------------------------------------------------------------------------------------------------


def _run(run: PlannedRun) -> dict[str, Any]:
    plan, (train, val) = run.plan, run.prompts()
    validation = run.validations * (val or 0) * run.data.val_images
    return {
        "processes": run.world,
        "precision": run.precision,
        "rounds": run.rounds,
        "images_per_round": plan.images,
        "images": plan.images * run.rounds,
        "updates": plan.updates_per_round * run.rounds,
        "off_policy_updates": plan.off_policy_updates * run.rounds,
        "validations": run.validations,
        "validation_images": validation,
        "train_prompts": train,
        "val_prompts": val,
        **({} if run.pairs is None else {"data_pairs": len(run.pairs)}),
    }


def _costs(run: PlannedRun, found: Estimate, tflops: float, mfu: float) -> dict[str, Any]:
    counts, per = _run(run), found.compute
    images, validation = counts["images"], counts["validation_images"]
    totals = {
        "rollout": images * per.rollout,
        "training": images * per.training,
        "evaluation": validation * per.evaluation,
        "decoding": (images + validation) * per.decoding,
    }
    rate = tflops * 1e12 * mfu * run.world
    return {
        "flop_per_image": asdict(per),
        "flop": totals,
        "hours": {name: flop / rate / 3600 for name, flop in totals.items()},
        "rate": {"tflops": tflops, "mfu": mfu, "devices": run.world},
        "memory": asdict(found.memory) | {"peak": found.memory.peak},
        "disk": _disk(run, found),
    }


def _disk(run: PlannedRun, found: Estimate) -> dict[str, int]:
    """Bytes that a run leaves, and a checkpoint within a round, which an interrupted run writes."""
    trained = found.footprint.trained
    checkpoint = trained * (2 if run.average else 1) + found.optimizer
    return {
        "embedding cache": run.encoded * found.footprint.embedding if found.footprint.remembered else 0,
        "checkpoint of a round": checkpoint,
        "checkpoint within a round": checkpoint + 2 * trained + found.trajectories * run.world,
        "latents of images": found.latents if found.footprint.remembered else 0,
        "images": run.validations * run.grids * found.image_bytes,
    }


# printing -------------------------------------------------------------------------------------------------------------


def _print(run: PlannedRun, document: dict[str, Any]) -> None:
    counts = document["run"]
    show(
        run.plan.describe(),
        f"whole run           {counts['rounds']} rounds: {counts['images']:,} images, {counts['updates']:,} updates"
        f"; {counts['validations']} validations: {counts['validation_images']:,} images",
    )
    if run.data.train_source == NO_PROMPTS:
        show("prompts             data.train is not set: embeddings of one round's prompts are counted")
    if "published" in document:
        show(f"sizes               as published for {document['published']}, which is not in the hub cache")
    if "missing" in document:
        show(f"no compute, memory, disk: {document['missing']}")
    else:
        for title, header, rows in _tables(run, document):
            show(table(header, rows, title=title, title_justify="left"))
    show(*(f"warning: {finding['text']}" for finding in document["findings"] if not finding["fatal"]))


def _tables(run: PlannedRun, document: dict[str, Any]) -> list[tuple[str, Row, list[Row]]]:
    per, totals, hours, rate = (document[k] for k in ("flop_per_image", "flop", "hours", "rate"))
    compute: list[Row] = [
        (k, f"{per[k] / 1e12:.4g}", f"{v / 1e15:,.4g}", f"{hours[k]:,.3g}") for k, v in totals.items()
    ]
    compute.append(("sum", "", f"{sum(totals.values()) / 1e15:,.4g}", f"{sum(hours.values()):,.3g}"))
    memory = document["memory"]
    checkpointing = "without" if run.module.policy.gradient_checkpointing else "with"
    phases: list[Row] = [(name, _bytes(size)) for name, size in memory["phases"].items()]
    phases.append((f"training {checkpointing} gradient checkpointing", _bytes(memory["other_checkpointing"])))
    if run.on_gpu:
        phases.append(("in the host's memory, besides", _bytes(memory["host"])))
    parts: list[Row] = [(name, _bytes(size)) for name, size in memory["parts"].items() if size]
    if not memory["scorers_known"]:
        parts.append(("scorers", "not known before they load"))
    disk: list[Row] = [(name, _bytes(size)) for name, size in document["disk"].items() if size]
    at = f"at {rate['mfu']:.0%} of {rate['tflops']:g} TFLOP/s on {rate['devices']} device(s)"
    return [
        (f"Compute, {at}", ("", "TFLOP an image", "PFLOP", "hours"), compute),
        ("Memory of a process, by part", ("", "bytes"), parts),
        ("Memory of a process, most at once", ("phase", "bytes"), phases),
        ("Disk", ("", "bytes"), disk),
    ]


def _bytes(size: float) -> str:
    power = min(int(math.log10(max(size, 1)) // 3), 4)
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
