"""What a user waits for: `python -m benchmarks.startup [--config configs/tiny_digits.yaml] [--runs 3] [--whole]`.

Starts `guardlit --help` and `guardlit fit` as processes of their own and prints when each stage is reached, in seconds
after the command and in CPU seconds of the process: what is imported, what the configuration comes to, the first round
drawn, the first update made. Stops there, or with `--whole` trains to the end. Medians over the runs; on a machine with
other work the CPU seconds say more.
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
STAGES = ("imported", "trainer ready", "training starts", "first round drawn", "first update", "end of training")
Times = dict[str, tuple[float, float]]


def child(began: float, report: Path, whole: bool, arguments: Sequence[str]) -> None:
    """Run `guardlit` in this process, and write down when each stage was reached."""
    times: Times = {}

    def reach(stage: str) -> None:
        times.setdefault(stage, (time.time() - began, time.process_time()))

    from guardlit import cli

    if "fit" in arguments:
        listen(reach, whole)
    code = cli.main(list(arguments))
    reach("end of training" if whole or "fit" not in arguments else "stopped")
    report.write_text(json.dumps(times))
    sys.exit(code)


def listen(reach: Any, whole: bool) -> None:
    """Have a callback of the run tell `reach` what happens."""
    import guardlit.app

    reach("imported")
    from lightning.pytorch import Callback

    class Stages(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            reach("trainer ready")

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            reach("training starts")

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            reach("first round drawn")

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step > 0:
                reach("first update")
                trainer.should_stop = trainer.should_stop or not whole
                if not whole:
                    trainer.fit_loop.epoch_loop.max_steps = 1

    guardlit.app.DEFAULTS = {**guardlit.app.DEFAULTS, "callbacks": [Stages()]}


def measure(arguments: Sequence[str], whole: bool = False) -> Times:
    """Times of one process: by stage, seconds after its start and CPU seconds."""
    with tempfile.TemporaryDirectory() as name:
        report = Path(name, "times.json")
        extra = ["--trainer.default_root_dir", f"{name}/runs"] if "fit" in arguments else []
        began = time.time()
        command = [sys.executable, "-m", "benchmarks.startup", "--child", str(began), str(report), str(int(whole))]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run(
            [*command, "--", *arguments, *extra], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
        return {stage: tuple(both) for stage, both in json.loads(report.read_text()).items()}


def show(title: str, runs: Sequence[Times]) -> None:
    """Print the medians, a row a stage."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}: median of {len(runs)}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for column in ("stage", "seconds", "CPU seconds"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in (s for s in STAGES if s in runs[0]):
        wall, cpu = (statistics.median(run[stage][clock] for run in runs) for clock in (0, 1))
        table.add_row(stage, f"{wall:.2f}", f"{cpu:.2f}")
    Console().print(table)


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
