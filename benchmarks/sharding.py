"""Memory of each rank of a sharded run: `python benchmarks/sharding.py [--layers 8] [--width 512]`.

Trains all weights of a mid-size Stable Diffusion 3 transformer for two rounds, by one process, and sharded over 2 and 4
(torchrun, gloo, CPU), and prints Markdown, in MB: a rank's peak while it loads, and afterwards. Before
that it trains a tiny model, so that every library is loaded; that memory is subtracted. The images of a round are
divided among the ranks, as in any run; `rollout_batch` and `micro_batch` are the same for all. Checkpoints are folders
of shards, or with `--one-file` files, which rank 0 assembles in its host's memory: that is then its peak.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import yaml
from memory import TINY, _status, configure

PROCESSES = (1, 2, 4)
STRATEGY = "guardlit.training.sharded_strategy.ShardedStrategy"


class Peaks(pl.Callback):
    """Writes, for every rank, the peaks of resident memory before and after training begins.

    Args:
        folder: for one file a process.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._before = self._loading = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing is loaded yet."""
        self._start()
        self._before = _status("VmRSS")

    def _start(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Weights are loaded and spread."""
        self._loading = _status("VmHWM") - self._before
        self._start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All phases have been."""
        weights = sum(p.numel() for p in pl_module.parameters()) * 4
        peaks = {"loading": self._loading, "training": _status("VmHWM") - self._before, "weights": weights}
        (self._folder / f"peaks_{trainer.global_rank}.json").write_text(json.dumps(peaks))


def child(config: Path) -> None:
    """Warm up, then run, as one of several processes."""
    from guardlit.commands.lightning_cli import main as guardlit

    world = int(os.environ.get("WORLD_SIZE", 1))
    several = ["--trainer.devices", str(world)]
    for path in (config.parent / "warm/run.yaml", config):
        sys.argv = ["guardlit", "fit", "--config", str(path), *several]
        guardlit(sys.argv[1:])


def measure(processes: int, layers: int, width: int, one_file: bool) -> tuple[list[dict[str, int]], int]:
    """Peaks of every process, and what `guardlit plan` says."""
    from guardlit.commands.plan import planned
    from guardlit.planning.estimate import estimate

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = {"layers": layers, "width": width, "heads": width // 64, "resolution": 128, "micro_batch": 2}
        config = configure(folder, {**case, "policy": {"lora": None}, "group": 8})
        (folder / "warm").mkdir()
        configure(folder / "warm", {**TINY, "micro_batch": 4, "group": 8, "policy": {"lora": None}})
        for path in (config, folder / "warm/run.yaml"):
            settings = yaml.safe_load(path.read_text())
            settings["data"]["rollout_batch"] = 2
            settings["trainer"]["callbacks"] = [
                {"class_path": "sharding.Peaks", "init_args": {"folder": str(path.parent)}}
            ]
            if processes > 1:
                options = {"save_distributed_checkpoint": not one_file}
                settings["trainer"]["strategy"] = {"class_path": STRATEGY, "init_args": options}
            path.write_text(yaml.safe_dump(settings))
        command = [sys.executable, __file__, "--child", str(config)]
        if processes > 1:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            command[1:1] = launcher
        here = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, "PYTHONPATH": here, "MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        expected = estimate(planned(["--config", str(config), "--trainer.devices", str(processes)])).memory.peak
        return [json.loads(path.read_text()) for path in sorted(folder.glob("peaks_*.json"))], expected


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--one-file", action="store_true", help="checkpoints as files")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    print("| processes | weights | peak in loading | peak in training | of one process's | `guardlit plan` |")
    print("|---|---|---|---|---|---|", flush=True)
    alone = 0
    for processes in PROCESSES:
        peaks, expected = measure(processes, args.layers, args.width, args.one_file)
        largest = {key: max(peak[key] for peak in peaks) for key in peaks[0]}
        alone = alone or largest["training"]
        cells = [largest["weights"] // processes, largest["loading"], largest["training"]]
        shown = " | ".join(f"{v / 1e6:.0f}" for v in cells)
        print(f"| {processes} | {shown} | {largest['training'] / alone:.2f} | {expected / 1e6:.0f} |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
