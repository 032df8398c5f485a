"""Times start-up: `python -m benchmarks.startup [--config configs/tiny_digits.yaml] [--runs 3] [--whole]`.

Starts `guardlit --help` and `guardlit fit` as separate processes and prints when each stage is done, in seconds after
the command and in CPU seconds of the process: imports, configuration, first round sampled, first update. It stops
there, or with `--whole` trains to the end and compares the shown time left with the actual one after each round.
Medians over the runs; on a busy machine the CPU seconds are more reliable.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("imported", "trainer ready", "training starts", "first round drawn", "first update", "end")
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
Times = dict[str, tuple[float, float]]
LEFT = "seconds left after round "
"""Such an entry has the shown seconds in place of CPU seconds."""


def child(began: float, report: Path, whole: bool, arguments: Sequence[str]) -> None:
    """Run `guardlit` in this process, and record when each stage is done."""
    times: Times = {}

    def note(stage: str, number: float | None = None) -> None:
        times.setdefault(stage, (time.time() - began, time.process_time() if number is None else number))

    from guardlit import cli

    if "fit" in arguments:
        listen(note, whole)
    code = cli.main(list(arguments))
    note("end" if whole or "fit" not in arguments else "stopped")
    report.write_text(json.dumps(times))
    sys.exit(code)


def listen(note: Any, whole: bool) -> None:
    """Add a callback that calls `note` at each stage of the run."""
    import guardlit.commands.lightning_cli

    note("imported")
    from lightning.pytorch import Callback

    class Stages(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            note("trainer ready")

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            note("training starts")

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            said = trainer.progress_bar_callback.seconds_left(trainer, trainer.current_epoch)
            if said is not None:
                note(f"{LEFT}{trainer.current_epoch}", said)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            note("first round drawn")

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step > 0:
                note("first update")
                trainer.should_stop = trainer.should_stop or not whole
                if not whole:
                    trainer.fit_loop.epoch_loop.max_steps = 1

    guardlit.commands.lightning_cli.DEFAULTS = {**guardlit.commands.lightning_cli.DEFAULTS, "callbacks": [Stages()]}


def measure(arguments: Sequence[str], whole: bool = False) -> Times:
    """Times of one process by stage: seconds after its start and CPU seconds."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name, "times.json")
        extra = ["--trainer.default_root_dir", f"{name}/runs"] if "fit" in arguments else []
        began = time.time()
        command = [sys.executable, "-m", "benchmarks.startup", "--child", str(began), str(report), str(int(whole))]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([*command, "--", *arguments, *extra], cwd=ROOT, env=environment, **CAPTURED)
        if done.returncode:
            raise SystemExit(done.stderr)
        return {stage: tuple(both) for stage, both in json.loads(report.read_text()).items()}


def show(title: str, runs: Sequence[Times]) -> None:
    """Print the medians, one row a stage."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}: median of {len(runs)}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for column in ("stage", "seconds", "CPU seconds"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in (s for s in STAGES if s in runs[0]):
        wall, cpu = (statistics.median(run[stage][clock] for run in runs) for clock in (0, 1))
        table.add_row(stage, f"{wall:.2f}", f"{cpu:.2f}")
    Console().print(table)
    for run in runs:
        show_left(run)


def show_left(run: Times) -> None:
    """Print the error of the time left that was shown after each round, from the second on."""
    end = run["end"][0] if "end" in run else 0.0
    rounds = [int(stage.removeprefix(LEFT)) for stage in run if stage.startswith(LEFT)]
    off = {k: run[f"{LEFT}{k}"][1] / (end - run[f"{LEFT}{k}"][0]) - 1 for k in rounds if k >= 2}
    if off:
        worst = max(off, key=lambda k: abs(off[k]))
        after = min(off)
        print(f"time left: {off[after]:+.0%} after round {after}, at worst {off[worst]:+.0%} after round {worst}")


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--child"]:
        began, report, whole, _, *arguments = sys.argv[2:]
        child(float(began), Path(report), whole == "1", arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny_digits.yaml")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="train to the end")
    args = parser.parse_args()
    show("guardlit --help", [measure(["--help"]) for _ in range(args.runs)])
    fit = ["fit", "--config", args.config]
    show(f"guardlit {' '.join(fit)}", [measure(fit, args.whole) for _ in range(args.runs)])


if __name__ == "__main__":
    main()
