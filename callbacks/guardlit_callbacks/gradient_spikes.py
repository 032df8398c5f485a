"""Gradient spikes: updates whose gradient is far larger than those before."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from guardlit_callbacks.distributed.gather import gather_objects
from guardlit_callbacks.distributed.gradients import gradient_norm, trained_parameters
from guardlit_callbacks.tools.lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from guardlit_callbacks.tools.outputs import is_skipped, read_output
from guardlit_callbacks.tools.requirements import check_one_optimizer, check_strategy, check_unscaled, sees_clipping

SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


class Largest(NamedTuple):
    """The sample of the largest gradient so far in an update: its gradient norm, and its outputs by key."""

    size: float
    names: dict[str, float]


class GradientSpikes(Callback):
    """Warns of an optimizer step whose gradient is far larger than those of the steps before.

    The total gradient norm before clipping is compared with the median and the median absolute deviation (MAD) of the
    last `window` steps. It is a spike if it exceeds the median by more than `sigmas` robust standard deviations
    (1.4826 MAD) and is at least `ratio` times the median; NaN and infinity are spikes too. Finite spikes enter the
    window, so that a lasting new level becomes the baseline. The first `patience` steps are never spikes, unless NaN or
    infinite.

    The warning gives the step, the norm, its baseline, and the sample of the largest `size` among the step's
    micro-batches on all ranks, identified by the outputs under `names`. Logged after each optimizer step:

    | key | unit |
    |---|---|
    | `gradient/spike_ratio` | norm over the window's median; infinite for NaN. Not before `patience` steps |
    | `gradient/spikes` | spikes since the start of the run |

    Needs one optimizer and, for the norm before clipping, automatic optimization or a module with `gradient_norm()`.
    Correct under DDP, FSDP2, gradient accumulation and 16-bit precision; the window is kept in checkpoints. Costs one
    scalar reduction and one synchronization an optimizer step, and one norm of the gradients where neither the module
    (by a method `gradient_norm()`) nor another callback has it.

    Example:
        ```python
        from guardlit_callbacks import GradientSpikes
        Trainer(gradient_clip_val=1.0, callbacks=[GradientSpikes(ratio=5.0, names=("step", "sample"))])
        ```

    Args:
        ratio: a norm below this many medians is not a spike.
        sigmas: a norm within this many robust standard deviations of the median is not a spike.
        window: optimizer steps in the baseline.
        patience: fewest optimizer steps in the baseline.
        size: key of each sample's gradient norm (B,) among the outputs of `training_step`; None to identify no sample.
        names: keys of values (B,) that identify a sample.

    Raises:
        ValueError: an argument is out of range.
        MisconfigurationException: a key is not among the outputs; manual optimization without `gradient_norm()`, or
            with several optimizer steps in a `training_step`; several optimizers; FSDP1, DeepSpeed, or a fused
            optimizer in 16-mixed precision.
    """

    def __init__(
        self,
        ratio: float = 5.0,
        sigmas: float = 6.0,
        window: int = 100,
        patience: int = 20,
        size: str | None = "velocity_grad_norm",
        names: Sequence[str] = ("step",),
    ) -> None:
        if not ratio > 1 or not sigmas > 0:
            raise ValueError(f"GradientSpikes: ratio={ratio} must exceed 1, and sigmas={sigmas} must exceed 0")
        if not 2 <= patience <= window:
            raise ValueError(f"GradientSpikes: patience={patience} must be at least 2 and at most window={window}")
        self.ratio, self.sigmas, self.patience = ratio, sigmas, patience
        self.size, self.names = size, tuple(names)
        self.spikes = 0
        self.last_ratio: float | None = None
        """Norm over median of the last optimizer step; infinite for a non-finite norm, None without a baseline."""
        self._norms: deque[float] = deque(maxlen=window)
        self._rows: list[dict[str, Tensor]] = []  # of the update's micro-batches, on their device
        self._restored: Largest | None = None  # the same of the micro-batches before a resume
        self._norm: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts afresh; a checkpoint's state is loaded after this hook."""
        if stage == "fit":
            self._norms.clear()
            self.spikes, self.last_ratio = 0, None
            self._rows, self._restored, self._norm = [], None, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a run in which the norm before clipping is not known."""
        check_strategy(trainer, self)
        check_one_optimizer(trainer, self)
        check_unscaled(trainer, self)
        if not sees_clipping(pl_module):
            raise MisconfigurationException(
                "GradientSpikes: under manual optimization the module clips in training_step, before the norm can be "
                "taken; add a method gradient_norm() that returns the norm before clipping, or remove the callback"
            )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Takes the norm before Lightning clips, one for all ranks."""
        if any(p.grad is not None for p in trained_parameters([optimizer])):
            if self._norm is not None:
                raise MisconfigurationException(
                    "GradientSpikes: training_step makes several optimizer steps, and their samples cannot be told "
                    "apart; make one step per batch, or remove the callback"
                )
            self._norm = trainer.strategy.reduce(gradient_norm(pl_module), reduce_op="mean")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the micro-batch's samples; checks the update for a spike if this was its last micro-batch."""
        if self.size is not None and not is_skipped(outputs, pl_module):
            keys = {**dict.fromkeys(self.names, "names"), self.size: "size"}
            self._rows.append({key: read_output(outputs, key, self, argument) for key, argument in keys.items()})
        if self._norm is None:
            return
        norm, self._norm = float(self._norm), None
        has_baseline = len(self._norms) >= self.patience
        self._check(trainer, norm, has_baseline)
        metrics = {"gradient/spikes": float(self.spikes)}
        if has_baseline and self.last_ratio is not None:
            metrics["gradient/spike_ratio"] = self.last_ratio
        pl_module.log_dict(metrics, batch_size=1)  # the same numbers on every rank
        self._rows, self._restored = [], None

    def _largest(self) -> Largest | None:
        """Of the update so far, over all ranks; NaN counts as larger than any number. Collective."""
        mine = self._restored
        if self._rows and self.size is not None:
            columns = {key: torch.cat([rows[key] for rows in self._rows]).double().cpu() for key in self._rows[0]}
            row = int(columns[self.size].nan_to_num(nan=math.inf).argmax())
            here = Largest(float(columns[self.size][row]), {name: float(columns[name][row]) for name in self.names})
            mine = max(filter(None, (mine, here)), key=_rank)
        return max(filter(None, gather_objects(mine)), key=_rank, default=None)

    def baseline(self) -> tuple[float, float]:
        """Median of the window's norms and their robust standard deviation, 1.4826 MAD."""
        middle = median(self._norms)
        return middle, SIGMA * median(abs(norm - middle) for norm in self._norms)

    def _check(self, trainer: Trainer, norm: float, has_baseline: bool) -> None:
        self.last_ratio = None
        what = f"gradient spike at step {trainer.global_step}: norm {norm:.4g}"
        if not math.isfinite(norm):
            self.last_ratio = math.inf
            self._warn(what)
            return
        if has_baseline:
            middle, sigma = self.baseline()
            self.last_ratio = norm / middle if middle > 0 else (math.inf if norm > 0 else 1.0)
            if self.last_ratio >= self.ratio and norm - middle > self.sigmas * sigma:
                baseline = f"median {middle:.4g}, robust standard deviation {sigma:.2g}"
                self._warn(f"{what} is {self.last_ratio:.3g} times that of the last {len(self._norms)} ({baseline})")
        self._norms.append(norm)

    def _warn(self, what: str) -> None:
        """Counts and warns. Collective; every rank has the same norm, so all come here."""
        self.spikes += 1
        if (largest := self._largest()) is not None:
            names = ", ".join(f"{name} {value:g}" for name, value in largest.names.items())
            what += f"; the largest {self.size}, {largest.size:.4g}, is at {names}" if names else ""
        rank_zero_warn(what)

    def state_dict(self) -> dict[str, Any]:
        """The window, and the largest sample of an update in progress. Collective: Lightning calls every rank."""
        largest = self._largest()
        kept = None if largest is None else [largest.size, dict(largest.names)]
        return {"norms": list(self._norms), "spikes": self.spikes, "largest": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the window."""
        self._norms.clear()
        self._norms.extend(state_dict["norms"])
        self.spikes, largest = state_dict["spikes"], state_dict["largest"]
        self._rows, self._norm = [], None
        self._restored = None if largest is None else Largest(*largest)


def _rank(largest: Largest) -> float:
    return math.inf if math.isnan(largest.size) else largest.size
