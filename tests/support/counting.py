"""Counts iterations of a run's loops, and encoded prompts by device, in the record of synchronizations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
from synchronizations import RECORD
from torch import Tensor


class Counts(pl.Callback):
    """Counts denoising steps and micro-batches; one of a run's callbacks."""

    def on_phase(self, trainer: pl.Trainer, phase: str, done: int, total: int) -> None:
        """Count one step or micro-batch."""
        if done:
            RECORD.calls[{"rollout": "denoising", "update": "micro-batch"}.get(phase, phase)] += 1


def count_encoding() -> None:
    """Count prompts by the device that encoded them."""
    from guardlit.policies.folders.embeddings import EmbeddingCache

    add = EmbeddingCache.add

    def counted(self: EmbeddingCache, prompts: Sequence[str], embeddings: Mapping[str, Tensor]) -> None:
        for tensor in embeddings.values():
            RECORD.calls[f"encoded on {tensor.device.type}"] += len(prompts)
        add(self, prompts, embeddings)

    EmbeddingCache.add = counted  # type: ignore[method-assign]
