"""The device's peak rates: matrix products and memory."""

from __future__ import annotations

import torch

from benchmarks.gpu import measure
from benchmarks.gpu.stage import Bench, Stage

KINDS = ("bf16", "fp16", "tf32", "fp32")


def run(bench: Bench) -> None:
    """Square products in each precision, and a copy."""
    side = bench.size(8192, 128)
    for name in KINDS:
        bench.trying(f"matrix product, {name}", lambda name=name: _product(bench, name, side))
    elements = bench.size(1 << 30, 1 << 16)
    source = torch.empty(elements, dtype=torch.float32, device=bench.kind)
    target = torch.empty_like(source)
    took = measure.seconds(bench.kind, lambda: target.copy_(source), repeats=10)
    bench.row("copy within memory", 8 * elements / took / 1e12, "TB/s", f"{4 * elements / 1e9:.3g} GB read and written")


def _product(bench: Bench, name: str, side: int) -> None:
    dtype = measure.AUTOCAST.get(name, torch.float32)
    a, b = (torch.randn(side, side, device=bench.kind, dtype=dtype) for _ in range(2))
    repeats = 10 if dtype != torch.float32 else 3
    with measure.precision(bench.kind, "tf32" if name == "tf32" else "fp32"):
        took = measure.seconds(bench.kind, lambda: a @ b, repeats=repeats, warm=2)
    bench.row(f"matrix product, {name}", 2 * side**3 / took / 1e12, "TFLOP/s", f"{side} x {side}, median of {repeats}")


STAGES = (
    Stage(
        "ceilings",
        "matrix products in each precision, and memory",
        run,
        20,
        (*(f"matrix product, {name}" for name in KINDS), "copy within memory"),
    ),
)
