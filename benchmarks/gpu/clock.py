"""Times a round of the real loop against bare calls of the same network in the same process."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

Key = tuple[str, bool]
"""A phase of the round, and whether gradients were computed."""


class Clock(pl.Callback):
    """Writes a list of rounds to the file that `$GUARDLIT_BENCHMARK_CLOCK` names.

    Of each round: seconds of `rollout` (from the first encoding to the first micro-batch) and `update` (from there to
    the end of the round, logs included); `model_rollout` and `model_update`, the device's seconds in the transformer
    and in backward passes; `peak_rollout` and `peak_update` in bytes; `calls` of the transformer; and `bare_rollout`
    and `bare_update`, the seconds of as many bare calls, timed right after the round.

    Args:
        bare: repetitions of each bare call; 0 for none.
    """

    def __init__(self, bare: int = 0) -> None:
        self.bare = bare
        self.rounds: list[dict[str, Any]] = []
        self._phase = "rollout"
        self._spans: list[tuple[Key, Any, Any]] = []
        self._calls: dict[Key, int] = {}
        self._seen: dict[Key, tuple[Any, Any]] = {}
        self._marks: list[float] = []
        self._round: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Wrap the transformer's forward."""
        self._cuda = pl_module.device.type == "cuda"
        self._forward = pl_module.policy.transformer.forward
        pl_module.policy.transformer.forward = self._timed

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        key = self._phase, torch.is_grad_enabled()
        self._calls[key] = self._calls.get(key, 0) + 1
        if self.bare:
            self._seen[key] = args, {k: v.detach() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        begun = self._now()
        out = self._forward(*args, **kwargs)
        self._spans.append((key, begun, self._now()))
        return out

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begun: Any, ended: Any) -> float:
        return float(begun.elapsed_time(ended) / 1000 if self._cuda else ended - begun)

    def _mark(self, name: str) -> None:
        """End a phase: its seconds and its peak."""
        if self._cuda:
            torch.cuda.synchronize()
            self._round[f"peak_{name}"] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        now = time.perf_counter()
        self._round[name] = now - self._marks[-1]
        self._marks.append(now)

    def on_phase(self, trainer: pl.Trainer, phase: str, done: int, total: int) -> None:
        """The round begins."""
        if phase == "encode" and not self._marks:
            if self._cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            self._marks = [time.perf_counter()]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The first micro-batch ends the rollout."""
        if self._phase == "rollout":
            self._mark("rollout")
            self._phase = "update"

    def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
        """A backward pass begins."""
        self._begun = self._now()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """A backward pass ends."""
        self._spans.append((("update", True), self._begun, self._now()))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Close the round and take the bare calls."""
        self._mark("update")
        for phase in ("rollout", "update"):
            spans = [self._seconds(a, b) for key, a, b in self._spans if key[0] == phase]
            self._round[f"model_{phase}"] = sum(spans)
        self._round["calls"] = {f"{phase}{' with gradient' if g else ''}": n for (phase, g), n in self._calls.items()}
        self._round["images"] = trainer.datamodule.plan.images  # type: ignore[attr-defined]
        if self.bare:
            self._take_bare(trainer, pl_module)
        self.rounds.append(self._round)
        Path(os.environ["GUARDLIT_BENCHMARK_CLOCK"]).write_text(json.dumps({"rounds": self.rounds}))
        self._phase, self._spans, self._calls, self._marks, self._round = "rollout", [], {}, [], {}

    def _take_bare(self, trainer: pl.Trainer, module: Any) -> None:
        trained = [p for p in module.policy.parameters() if p.requires_grad]
        totals = {"rollout": 0.0, "update": 0.0}
        for key, (args, kwargs) in self._seen.items():

            def call(grad: bool = key[1], args: Any = args, kwargs: Any = kwargs) -> None:
                with trainer.precision_plugin.forward_context(), torch.set_grad_enabled(grad):
                    out = self._forward(*args, **kwargs)[0].float()
                if grad:
                    torch.autograd.grad(out.square().mean(), trained, allow_unused=True)

            totals[key[0]] += self._calls.get(key, 0) * self._median(call)
        self._round |= {f"bare_{phase}": total for phase, total in totals.items()}

    def _median(self, call: Callable[[], None]) -> float:
        times = []
        for _ in range(self.bare):
            self._wait()
            begun = time.perf_counter()
            call()
            self._wait()
            times.append(time.perf_counter() - begun)
        return median(times)

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()
