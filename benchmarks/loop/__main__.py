"""Measures a round against a bare loop over the same model, paired in one process: `python -m benchmarks.loop`.

Trains a random Stable Diffusion 3 model by `guardlit fit`, with every callback of `configs/tiny_digits.yaml`. A call
of a bare loop follows every denoising step and every micro-batch: the same LoRA-wrapped transformer in eager mode and
float32, on inputs of the same shape. A machine that is slow for a moment is therefore slow for both. The tables show
the bare loop's CPU seconds over the run's, by phase and round, the fraction of each phase inside the model, and the
work between the model's calls. Validation is not part of a round.

`--set KEY=VALUE` changes a setting of the run, not of the bare loop:

    python -m benchmarks.loop --set model.policy.weights_dtype=bf16 --set trainer.precision=bf16-true

A check for regressions, not part of the tests:

    python -m benchmarks.loop --repeat 3 --json benchmarks/loop_baseline.json
    python -m benchmarks.loop --compare benchmarks/loop_baseline.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks.loop.ledger import Ledger
from benchmarks.loop.pairing import Bare, Pairing, Round
from benchmarks.loop.ratios import differing, measures, worse
from benchmarks.loop.report import model_fractions, show_between, show_ratios, show_rounds, total
from benchmarks.loop.world import ROOT, SIZES, make_config, make_folder, policy_settings

Measured = dict[str, Any]


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loop", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--callbacks", choices=("all", "none"), default="all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the run")
    parser.add_argument("--threads", type=int, default=1, help="of torch; one is the least noisy")
    parser.add_argument("--repeat", type=int, default=1, help="processes, one after another")
    parser.add_argument("--json", type=Path, help="write the ratios there")
    parser.add_argument("--compare", type=Path, help="exit with 1 where a ratio is worse than there beyond the noise")
    return parser.parse_args()


def run(args: argparse.Namespace) -> list[Round]:
    """Train in this process, and return the rounds' times."""
    from guardlit.cli import main as fit
    from guardlit.commands import lightning_cli as app
    from guardlit.policies import LoRA, SD3Policy

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_folder(folder / "model", args.size)
        config = make_config(folder, model, args.size, args.rounds, args.callbacks)
        settings = policy_settings(model, args.size)
        policy = SD3Policy(**{**settings, "lora": LoRA(**settings["lora"])})
        policy.load()
        pairing = Pairing(Bare(policy.transformer), Ledger(args.threads == 1))
        app.DEFAULTS = {**app.DEFAULTS, "callbacks": [pairing]}
        code = fit(["fit", "--config", str(config), *(f"--{setting}" for setting in args.set)])
    if code:
        raise SystemExit(code)
    return pairing.rounds


def measured(rounds: list[Round]) -> Measured:
    """Ratios and fractions of one process, for the file."""
    by_phase = [
        {phase: ([(r.cpu, b.cpu) for r, b in pairs], total(round, phase).cpu) for phase, pairs in round.pairs.items()}
        for round in rounds
    ]
    return {"bare_over_run": measures(by_phase), "fraction_in_model": model_fractions(rounds)}


def repeat(args: argparse.Namespace) -> list[Measured]:
    """Measure in several processes, one after another."""
    found: list[Measured] = []
    for _ in range(args.repeat):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "one.json")
            rest = [f"--set={s}" for s in args.set] + ["--threads", str(args.threads), "--json", str(path)]
            chosen = ["--size", args.size, "--rounds", str(args.rounds), "--callbacks", args.callbacks]
            subprocess.run([sys.executable, "-m", "benchmarks.loop", *chosen, *rest], cwd=ROOT, check=True)
            found += json.loads(path.read_text())["runs"]
    return found


def main() -> int:
    """Measure, print, and compare."""
    args = arguments()
    settings = {name: getattr(args, name) for name in ("size", "rounds", "callbacks", "set", "threads")}
    base = json.loads(args.compare.read_text()) if args.compare else None
    if base is not None and (others := differing(settings, base["settings"])):
        print(f"{args.compare} cannot be compared: {'; '.join(others)}", file=sys.stderr)
        return 2
    if args.repeat > 1:
        found = repeat(args)
    else:
        rounds = run(args)
        title = f"{args.size}, callbacks {args.callbacks}, {' '.join(args.set) or 'no setting changed'}"
        show_rounds(f"{title}: load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} torch thread", rounds)
        show_between(rounds)
        found = [measured(rounds)]
        show_ratios(found[0]["bare_over_run"])
    if args.json:
        args.json.write_text(json.dumps({"settings": settings, "runs": found}, indent=1) + "\n")
    if base is None:
        return 0
    lines = worse(*([run["bare_over_run"] for run in runs] for runs in (found, base["runs"])))
    print("; ".join(lines) or "no ratio is worse than the baseline beyond the noise")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
