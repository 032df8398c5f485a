"""The memory estimate of `guardlit plan` against measured peaks: `python benchmarks/memory.py [CASE ...]`.

Each case is a real `guardlit fit` of two rounds on the CPU, in a separate process. The process first trains a tiny
model, which loads every library; then the peak of its resident memory is reset, and read at the end: what the run
itself took. The estimate is of the same configuration. MALLOC_MMAP_THRESHOLD_ (1 MB, tiny models 128 kB) makes glibc
return large blocks at once, since otherwise holes of its heap count as used; `--holes` leaves it unset.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

import yaml

MID = {"layers": 6, "width": 384, "heads": 6, "resolution": 256}
TINY = {"layers": 2, "width": 32, "heads": 2, "resolution": 64}
CASES: dict[str, dict[str, Any]] = {
    "tiny": {**TINY, "micro_batch": 48, "group": 48},
    "tiny, full fine-tuning": {**TINY, "micro_batch": 48, "group": 48, "policy": {"lora": None}},
    "mid": {**MID},
    "mid, checkpointing": {**MID, "micro_batch": 8, "policy": {"gradient_checkpointing": True}},
    "mid, full fine-tuning": {**MID, "micro_batch": 2, "policy": {"lora": None, "reference": True}, "kl": 0.01},
    "mid, bf16-mixed": {**MID, "precision": "bf16-mixed"},
    "mid, no guidance": {**MID, "micro_batch": 8, "guidance": 1.0},
}


def configure(folder: Path, case: Mapping[str, Any]) -> Path:
    """Write a random model and the YAML of a run on it."""
    from diffusers import SD3Transformer2DModel
    from tiny_folders import make_sd3

    model, layers, width = folder / "model", case["layers"], case["width"]
    make_sd3(model, sample_size=case["resolution"] // 8)
    config = SD3Transformer2DModel.load_config(model / "transformer")
    sizes = {"num_layers": layers, "num_attention_heads": case["heads"], "caption_projection_dim": width}
    sizes |= {"attention_head_dim": width // case["heads"], "dual_attention_layers": tuple(range(layers // 2))}
    SD3Transformer2DModel.from_config({**config, **sizes}).save_pretrained(model / "transformer")
    (folder / "prompts.txt").write_text("".join(f"prompt {i}\n" for i in range(4)))
    policy = {"model": str(model), "resolution": case["resolution"], "max_sequence_length": 32, "cache": None}
    sampling = {"num_inference_steps": 3, "guidance_scale": case.get("guidance", 4.5)}
    settings = {
        "model": {
            "policy": {"class_path": "SD3Policy", "init_args": policy | case.get("policy", {})},
            "reward": "JPEGCompressibility",
            "objective": {"class_path": "GRPOGuard", "init_args": {"clip_range": 1e-4}},
            "rollout": sampling,
            "kl": {"weight": case["kl"]} if "kl" in case else None,
        },
        "data": {
            "train": str(folder / "prompts.txt"),
            "prompts_per_round": 2,
            "images_per_prompt": case.get("group", 4),
            "micro_batch": case.get("micro_batch", 4),
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "precision": case.get("precision", "32-true")},
    }
    settings["trainer"]["default_root_dir"] = str(folder / "runs")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def child(config: Path) -> None:
    """Warm up, run, and print the bytes that the run took."""
    from guardlit.cli import main

    main(["fit", "--config", str(config.parent / "warm/run.yaml")])
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    if main(["fit", "--config", str(config)]):
        raise SystemExit(1)
    print(json.dumps({"measured": _status("VmHWM") - before}))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measure(config: Path, threshold: int | None) -> int:
    """Bytes that a run takes in a separate process."""
    (config.parent / "warm").mkdir()
    configure(config.parent / "warm", {**TINY, "micro_batch": 4})
    own = {} if threshold is None else {"MALLOC_MMAP_THRESHOLD_": str(threshold)}
    command = [sys.executable, __file__, "--child", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own})
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return int(json.loads(done.stdout.splitlines()[-1])["measured"])


def compare(name: str, holes: bool = False) -> tuple[int, int, str]:
    """Measured and estimated bytes of a case, and the phase of the estimated peak."""
    from guardlit.commands.plan import planned
    from guardlit.planning.estimate import estimate

    with tempfile.TemporaryDirectory() as folder:
        config = configure(Path(folder), CASES[name])
        memory = estimate(planned(["--config", str(config)])).memory
        threshold = None if holes else 131072 if CASES[name]["layers"] == TINY["layers"] else 1000000
        return measure(config, threshold), memory.peak, max(memory.phases, key=lambda phase: memory.phases[phase])


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--holes", action="store_true", help="keep glibc's default heap settings")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    print(f"{'case':<26}{'measured MB':>12}{'estimate MB':>12}{'off':>8}  peak in")
    for name in args.cases or CASES:
        measured, estimated, phase = compare(name, args.holes)
        off = estimated / measured - 1
        print(f"{name:<26}{measured / 1e6:>12.1f}{estimated / 1e6:>12.1f}{off:>+8.1%}  {phase}", flush=True)


if __name__ == "__main__":
    main()
