"""Seconds, bytes and precision of calls on an asynchronous device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import torch

PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
"""Dense bf16 TFLOP/s of the data sheets, by a part of the device's name."""


def peak_rate(device: str) -> float | None:
    """The data sheet's bf16 TFLOP/s; None for a device that is not in the list."""
    return next((rate for key, rate in PEAKS.items() if key in device), None)


def wait(kind: str) -> None:
    """Wait until the device has finished its queue."""
    if kind == "cuda":
        torch.cuda.synchronize()


def seconds(kind: str, call: Callable[[], object], repeats: int = 5, warm: int = 1) -> float:
    """Median seconds of a call, synchronized with the device."""
    return median(_times(kind, [call], repeats, warm)[0])


def paired(kind: str, calls: list[Callable[[], object]], pairs: int, warm: int = 1) -> list[float]:
    """Median seconds of several interleaved calls, so that a slow moment of the machine affects all of them."""
    return [median(times) for times in _times(kind, calls, pairs, warm)]


def _times(kind: str, calls: list[Callable[[], object]], repeats: int, warm: int) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in calls]
    for turn in range(warm + repeats):
        for call, times in zip(calls, found, strict=True):
            wait(kind)
            begun = time.perf_counter()
            call()
            wait(kind)
            if turn >= warm:
                times.append(time.perf_counter() - begun)
    return found


def peak(kind: str, call: Callable[[], object]) -> int:
    """Peak bytes that PyTorch allocated during a call; 0 on the CPU, where it is not counted."""
    if kind != "cuda":
        call()
        return 0
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())


AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def precision(kind: str, name: str) -> Iterator[None]:
    """Run in `fp32` (no TF32 anywhere), `tf32`, or under autocast in `bf16` or `fp16` as the Trainer would."""
    tf32 = name == "tf32"
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    dtype = AUTOCAST.get(name)
    try:
        with torch.autocast(kind, dtype, enabled=dtype is not None):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
