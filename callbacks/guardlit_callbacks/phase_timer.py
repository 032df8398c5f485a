"""Wall time per training phase, throughput and device utilization."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch

from guardlit_callbacks.tools.lightning import Callback, LightningModule, MisconfigurationException, Trainer


class PhaseTimer(Callback):
    """Measures the time of each training phase, throughput, and model FLOPs utilization.

    Every Lightning project has three phases: `update` (a training batch, with its optimizer step), `validation`, and
    `data`, all time in between: waiting for the next batch, checkpoints, other callbacks. In on-policy training the
    rollout happens within one of these. A module that keeps an attribute such as
    `self.phase_seconds = {"rollout": 12.3, "reward": 4.5}`, cumulative seconds, can name it in `phases`: its phases are
    then reported separately and subtracted from the phase in which they happened, so that fractions sum to 1.

    Times are the host's: without `sync`, queued kernels count in the phase that waits for them.

    Logged at the end of each training epoch, over that epoch:

    | key | unit |
    |---|---|
    | `time/PHASE_seconds` | s, mean over ranks |
    | `time/PHASE_share` | fraction of the epoch, 0 to 1, mean over ranks |
    | `time/epoch_seconds` | s, mean over ranks |
    | `time/samples_per_second` | 1/s, sum over ranks; with `samples` only |
    | `time/mfu` | fraction of the peak, 0 to 1, mean over ranks; with `flops_per_sample` and `peak_flops` only |

    Example:
        ```python
        class Module(LightningModule):
            phase_seconds, images_made = {"rollout": 0.0}, 0
            def rollout(self):
                start = perf_counter(); images = self.sample(); self.images_made += len(images)
                self.phase_seconds["rollout"] += perf_counter() - start
        Trainer(callbacks=[PhaseTimer(phases="phase_seconds", samples="images_made")])
        ```

    Args:
        phases: name of a module attribute, a mapping from phase to seconds spent so far; None for none.
        samples: name of a module attribute, the number of samples of this rank so far; None for none.
        flops_per_sample: floating-point operations per sample, over all phases.
        peak_flops: peak operations per second of one device at the precision used.
        sync: synchronize the device at the end of each phase; exact, but slower.

    Raises:
        ValueError: only one of flops_per_sample and peak_flops, or without `samples`.
        MisconfigurationException: the module lacks an attribute named here, or it decreased.
    """

    def __init__(
        self,
        phases: str | None = None,
        samples: str | None = None,
        flops_per_sample: float | None = None,
        peak_flops: float | None = None,
        sync: bool = False,
    ) -> None:
        if (flops_per_sample is None) != (peak_flops is None) or (flops_per_sample is not None and samples is None):
            raise ValueError("PhaseTimer: flops_per_sample, peak_flops and samples belong together; give all three")
        self.phases, self.samples, self.sync = phases, samples, sync
        self.flops_per_sample, self.peak_flops = flops_per_sample, peak_flops
        self._last: float | None = None  # when the last phase ended; None outside training
        self._seconds: dict[str, float] = {}
        self._published: dict[str, float] = {}
        self._samples = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the timer."""
        self._seconds = {"data": 0.0, "update": 0.0, "validation": 0.0}
        self._published, self._samples = self._read_phases(pl_module), self._read_samples(pl_module)
        self._last = perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ends a `data` phase."""
        self._end("data", pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends an `update` phase."""
        self._end("update", pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a `data` phase."""
        self._end("data", pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a `validation` phase."""
        self._end("validation", pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch and starts the next."""
        self._end("data", pl_module)
        total = max(sum(self._seconds.values()), 1e-9)
        metrics = {f"time/{phase}_seconds": seconds for phase, seconds in self._seconds.items()}
        metrics |= {f"time/{phase}_share": seconds / total for phase, seconds in self._seconds.items()}
        metrics["time/epoch_seconds"] = total
        if self.samples is not None:
            previous, self._samples = self._samples, self._read_samples(pl_module)
            if self._samples < previous:
                raise MisconfigurationException(
                    f"PhaseTimer: {self.samples!r} of the module fell from {previous} to {self._samples}; it must "
                    "count the samples since training started: do not reset it"
                )
            rate = (self._samples - previous) / total
            pl_module.log("time/samples_per_second", rate, sync_dist=True, reduce_fx="sum", batch_size=1)
            if self.flops_per_sample is not None and self.peak_flops is not None:
                metrics["time/mfu"] = rate * self.flops_per_sample / self.peak_flops
        for key, value in metrics.items():
            pl_module.log(key, value, sync_dist=True, batch_size=1)
        self._seconds = dict.fromkeys(self._seconds, 0.0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the timer."""
        self._last = None

    def _end(self, phase: str, pl_module: LightningModule) -> None:
        """Adds the time since the last end to `phase`, without the time of the module's own phases."""
        if self._last is None:
            return
        if self.sync and pl_module.device.type != "cpu":
            torch.accelerator.synchronize(pl_module.device)
        now = perf_counter()
        published = self._read_phases(pl_module)
        own = {name: seconds - self._published.get(name, 0.0) for name, seconds in published.items()}
        for name in [name for name, seconds in own.items() if seconds < 0]:
            raise MisconfigurationException(
                f"PhaseTimer: {name!r} in {self.phases!r} of the module fell from {self._published[name]:.4g} to "
                f"{published[name]:.4g}; it must hold the seconds since training started: do not reset it"
            )
        for name, seconds in own.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
        self._seconds[phase] += now - self._last - sum(own.values())
        self._last, self._published = now, published

    def _read_phases(self, pl_module: LightningModule) -> dict[str, float]:
        if self.phases is None:
            return {}
        value = _attribute(pl_module, self.phases, "phases")
        if not isinstance(value, Mapping):
            raise MisconfigurationException(
                f"PhaseTimer: {self.phases!r} of the module is a {type(value).__name__}, not a mapping of seconds"
            )
        return dict(value)

    def _read_samples(self, pl_module: LightningModule) -> int:
        return 0 if self.samples is None else int(_attribute(pl_module, self.samples, "samples"))


def _attribute(pl_module: LightningModule, name: str, argument: str) -> Any:
    if not hasattr(pl_module, name):
        raise MisconfigurationException(
            f"PhaseTimer: {type(pl_module).__name__} has no attribute {name!r}; "
            f"set it, or name the right one with PhaseTimer({argument}=...)"
        )
    return getattr(pl_module, name)
