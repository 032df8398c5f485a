"""Complete runs of `guardlit fit` in forked processes: of the tests' tiny model and of random published ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.models import TOKENS, random_weights, write_folder
from benchmarks.gpu.processes import fork, last_line
from benchmarks.gpu.stage import Bench, NotMeasuredError

ROOT = Path(__file__).resolve().parents[2]
CLOCK = "benchmarks.gpu.clock.Clock"


def use_the_tests_helpers() -> None:
    """Make `from tiny_folders import make_sd3` work, as in the tests."""
    for path in (str(ROOT / "tests/support"), str(ROOT)):
        if path not in sys.path:
            sys.path.insert(0, path)


def accelerator(bench: Bench) -> str:
    """The Trainer's name of the device."""
    return "gpu" if bench.kind == "cuda" else "cpu"


def command(arguments: Sequence[object]) -> int:
    """`guardlit ARGUMENTS` in this process; its exit code."""
    from guardlit.cli import main

    try:
        return main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1


def done(bench: Bench, name: str, work: Callable[[], object], limit: float | None = None) -> None:
    """Run `work` in a forked process and wait for its end.

    Raises:
        NotMeasuredError: it failed or was killed; with the last line of its output.
    """
    log = bench.folder / f"{name}.log"
    limit = bench.left - 1 if limit is None else min(limit, bench.left - 1)
    code = fork(work, log).wait(limit)
    if code is None:
        raise NotMeasuredError(f"{name} took longer than {limit:.0f} s")
    if code:
        raise NotMeasuredError(f"{name} ended with {code}: {last_line(log)}")


def tiny_run(bench: Bench, name: str, model: Path, **changes: object) -> Path:
    """The YAML of a tiny run in a new folder, on the device; changes as in `tests/support/runs.py`."""
    use_the_tests_helpers()
    from runs import config

    folder = bench.folder / name
    folder.mkdir(parents=True)
    return config(folder, model, **{"trainer__accelerator": accelerator(bench), **changes})


def real_arguments(bench: Bench, family: str, more: Sequence[object], preset: str | None = "80gb") -> list[str]:
    """Arguments of `fit` for a published run on random weights, cut to few images: JPEG size as the proxy, a clock.

    Args:
        bench: of the stage.
        family: `sd35` or `flux`.
        more: arguments that come last and override the others.
        preset: of configs/gpu.
    """
    model = bench.folder / family
    if not model.exists():
        write_folder(model, family, bench.rehearse)
    run = {"sd35": "sd35_pickscore", "flux": "flux_pickscore"}[family]
    configs = [ROOT / f"configs/{run}.yaml", *([ROOT / f"configs/gpu/{preset}.yaml"] if preset else [])]
    arguments = [f"--config={path}" for path in configs]
    arguments += [f"--model.policy.init_args.model={model}", "--model.policy.init_args.cache=null"]
    arguments += ["--model.reward=JPEGCompressibility", "--data.val=null", "--trainer.logger=false"]
    arguments += [f"--trainer.accelerator={accelerator(bench)}", f"--trainer.default_root_dir={bench.folder / 'runs'}"]
    arguments += ["--trainer.callbacks=null", f"--trainer.callbacks+={CLOCK}"]
    if bench.rehearse:
        arguments += ["--model.policy.init_args.resolution=64", "--model.policy.init_args.lora.rank=4"]
        arguments += [
            "--trainer.precision=32-true",
            "--model.policy.init_args.weights_dtype=fp32",
            "--model.policy.init_args.max_sequence_length=16",
        ]
    return [*arguments, *map(str, more)]


def sizes(images: int, group: int, micro_batch: int, rollout_batch: int, rounds: int, steps: int) -> list[str]:
    """Options that make a run short: `images` in groups of `group`, two updates a round."""
    return [
        f"--data.prompts_per_round={images // group}",
        f"--data.images_per_prompt={group}",
        "--data.updates_per_round=2",
        f"--data.micro_batch={micro_batch}",
        f"--data.rollout_batch={rollout_batch}",
        f"--trainer.max_epochs={rounds}",
        f"--model.rollout.num_inference_steps={steps}",
    ]


def fit(bench: Bench, name: str, family: str, arguments: Sequence[str], limit: float | None = None) -> dict[str, Any]:
    """Run `fit` on random weights in a forked process, and return the results of its clock (`clock.Clock`).

    Raises:
        NotMeasuredError: it failed, for example at an unknown option.
    """
    out = bench.folder / f"{name}.json"

    def work() -> int:
        import os

        os.environ["GUARDLIT_BENCHMARK_CLOCK"] = str(out)
        tokens = 16 if bench.rehearse else TOKENS[family]
        with random_weights(bench.folder / family, bench.kind, tokens):
            return command(["fit", *arguments])

    done(bench, name, work, limit)
    return dict(json.loads(out.read_text()))
