"""What callbacks need of a run."""

from __future__ import annotations

from collections.abc import Iterable


def read_micro_batches(callbacks: Iterable[object]) -> bool:
    """Whether a callback reads the gradient of each micro-batch: its attribute `reads_micro_batches` is true.

    The run then has micro-batches of one denoising step each and, under DDP, reduces gradients at every backward pass.
    """
    return any(getattr(callback, "reads_micro_batches", False) for callback in callbacks)
