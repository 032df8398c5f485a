"""Gradient magnitude per denoising step, and gradient clipping (Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from guardlit_callbacks.bases.round import RoundCallback, Rows
from guardlit_callbacks.distributed.gather import gather_objects
from guardlit_callbacks.distributed.gradients import gradient_norm, total_norm, trained_parameters, zero_fraction
from guardlit_callbacks.distributed.sync_ddp import SyncDDP
from guardlit_callbacks.figures.plots import gradient_figure
from guardlit_callbacks.tools.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from guardlit_callbacks.tools.logging import log_figure, log_histograms, log_step_chart
from guardlit_callbacks.tools.outputs import is_skipped, read_output
from guardlit_callbacks.tools.requirements import (
    check_one_optimizer,
    check_strategy,
    check_unscaled,
    loss_scale,
    scaler,
    sees_clipping,
)
from guardlit_callbacks.tools.rounds import is_due
from guardlit_callbacks.tools.statistics import max_over_min, split, step_index, unmasked

CLIP_TOLERANCE = 1e-5
"""A norm that fell by a larger fraction than this was clipped; rounding moves it less."""

MANY_ZEROS = 0.05
"""Fraction of exact zeros in the gradient that indicates float16 underflow; a healthy one has about 0.01."""


class GradientNorm(RoundCallback):
    """Monitors the gradient's norm at every denoising step, and the effect of gradient clipping.

    Two gradients are measured. The gradient of the loss with respect to the predicted velocity comes with the outputs
    of `training_step`, one norm per sample, at no cost. The gradient of the trainable parameters is measured every
    `parameters_every` rounds and in the last one, as the difference that a micro-batch's backward pass makes to the
    accumulated gradient. Such a round keeps a second copy of the trainable gradients; Lightning's division by
    `accumulate_grad_batches` and the loss scale of 16-bit precision are undone. Its micro-batches must hold one
    denoising step each, the same on all ranks, with one backward pass each.

    Underflow in float16 is silent: entries become exactly zero. Under a loss scaler the callback warns, once, when too
    many entries are zero in a round after the first, in which a LoRA's first gradient is half zeros by construction.

    The total norm before clipping is shared with other callbacks; a module with a method `gradient_norm()` provides it.
    `gradient/figure` shows every step. Logged at the end of a round:

    | key | unit |
    |---|---|
    | `gradient/velocity/max_over_min` | largest over smallest mean norm of a step, d loss / d velocity, no unit |
    | `gradient/parameters/max_over_min` | largest over smallest mean norm of a step, d loss / d parameters |
    | `gradient/norm_before_clipping` | mean of the total norm over optimizer steps, loss / parameter |
    | `gradient/norm_after_clipping` | mean of the norm after clipping over optimizer steps, loss / parameter |
    | `gradient/clipped` | fraction of the optimizer steps in which clipping acted, 0 to 1 |
    | `gradient/zero_share` | fraction of exact zeros in the parameters' gradient, mean over optimizer steps, 0 to 1 |

    With `per_step` also, for TT, the index of the denoising step in two digits. Logged at the end of a round:

    | key | unit |
    |---|---|
    | `gradient/velocity/tTT` | mean norm over the step's samples, loss / velocity |
    | `gradient/parameters/tTT` | mean norm over the step's micro-batches, loss / parameter; in measured rounds |

    Loggers that take them get the histogram `gradient/velocity/histogram` of all samples' norms, or with `per_step`
    `gradient/velocity/histogram/tTT` of each step's, and the figure `gradient/figure`; W&B also gets the charts
    `gradient/velocity/by_step` and `gradient/parameters/by_step` with it. The run's folder gets
    `gradient/round_RRRRR.npz` with `step` and `velocity` (n,), `norm_before`, `norm_after` and `zero_share` (optimizer
    steps,) and, in measured rounds, `parameter_step` and `parameters` (micro-batches,); and the figure next to it.

    Sharded parameters (FSDP2) contribute their full norm. Under manual optimization the module clips within
    `training_step`, before any hook: then `gradient/norm_before_clipping` and `gradient/clipped` are logged only if the
    module's own `gradient_norm()` gives the norm before. Needs one optimizer.

    Example:
        ```python
        from guardlit_callbacks import GradientNorm, SyncDDP
        Trainer(strategy=SyncDDP(), accumulate_grad_batches=9, callbacks=[GradientNorm(parameters_every=10)])
        ```

    Args:
        velocity: key of the norm of d loss_b / d velocity_b, unscaled; None for none.
        step: key of the denoising step: its index, or a float timestep that falls during denoising.
        sample_weight: key of a weight; samples of weight 0 are left out. None if all count.
        parameters_every: measure the parameters' gradient in the first round, every so many rounds after it, and in the
            last one; 0 for never.
        draw_every: plot the first round, every so many rounds after it, and the last one; 0 for never.
        per_step: also log scalars and histograms of each denoising step.

    Raises:
        MisconfigurationException: a key is not among the outputs, or not one value per sample; several optimizers;
            FSDP1, DeepSpeed, or a fused optimizer in 16-mixed precision; `parameters_every` with a DDP that does not
            reduce at every backward pass, or with micro-batches that mix steps or have several backward passes.
    """

    def __init__(
        self,
        velocity: str | None = "velocity_grad_norm",
        step: str = "step",
        sample_weight: str | None = None,
        parameters_every: int = 0,
        draw_every: int = 10,
        per_step: bool = False,
    ) -> None:
        super().__init__(per_step)
        keys = {"step": step, "velocity": velocity, "sample_weight": sample_weight}
        self._keys = {argument: key for argument, key in keys.items() if key is not None}
        self.parameters_every, self.draw_every = parameters_every, draw_every
        self._warned = False
        self._forget()

    def _forget(self) -> None:
        super()._forget()
        self._updates: list[tuple[Tensor | None, Tensor]] = []  # total norm before and after clipping, scalars
        self._zeros: list[Tensor] = []  # an update's fraction of exact zeros
        self._measured: list[tuple[Tensor, Tensor]] = []  # a micro-batch's steps (B,), its parameters' gradient norm
        self._before: tuple[list[Tensor], Tensor, Tensor] | None = None  # what trains, its norm, its zeros
        self._accumulated: dict[Tensor, Tensor] = {}  # each parameter's gradient before a backward pass
        self._differences: list[Tensor] = []  # norms of what this micro-batch's backward passes added
        self._scale: float | None = None  # of the loss in this update; None until it was read, which waits for the GPU

    # --- the parameters' gradient --------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a run whose gradients cannot be measured, or not those of each micro-batch."""
        check_strategy(trainer, self)
        check_one_optimizer(trainer, self)
        check_unscaled(trainer, self)
        accumulates = trainer.accumulate_grad_batches > 1
        if self.parameters_every and accumulates and not isinstance(trainer.strategy, SyncDDP):
            self._check_reduced(isinstance(trainer.strategy.model, DistributedDataParallel))

    def _check_reduced(self, hidden: bool) -> None:
        if hidden:
            raise MisconfigurationException(
                "GradientNorm: parameters_every needs gradients reduced at every backward, which DDP skips while it "
                "accumulates; set the trainer's strategy to guardlit_callbacks.SyncDDP, or parameters_every=0"
            )

    @property
    def reads_micro_batches(self) -> bool:
        """Whether it reads each micro-batch's gradient: under DDP it then needs `SyncDDP`."""
        return self.parameters_every > 0

    def _measures(self, trainer: Trainer) -> bool:
        return is_due(trainer, trainer.current_epoch + 1, self.parameters_every)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Copies the gradient accumulated so far: no hook tells when a module zeroes it by hand."""
        if self._measures(trainer):
            self._check_reduced(getattr(trainer.strategy.model, "require_backward_grad_sync", True) is False)
            parameters = trained_parameters(trainer.optimizers)
            self._accumulated = {p: p.grad.detach().clone() for p in parameters if p.grad is not None}

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the norm of what this backward pass added."""
        if not self._measures(trainer):
            return
        gradients = {p: p.grad.detach() for p in trained_parameters(trainer.optimizers) if p.grad is not None}
        added = [g - self._accumulated[p] if p in self._accumulated else g for p, g in gradients.items()]
        self._accumulated = {}
        if self._scale is None:
            self._scale = loss_scale(trainer)
        self._differences.append(total_norm(added) * (trainer.accumulate_grad_batches / self._scale))

    # --- clipping ------------------------------------------------------------------------------------------------

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Takes the total norm before Lightning clips it, and counts the zeros."""
        parameters, self._scale = trained_parameters([optimizer]), None
        zeros = zero_fraction(p.grad for p in parameters)
        if pl_module.automatic_optimization:
            self._before = parameters, gradient_norm(pl_module), zeros
        elif any(p.grad is not None for p in parameters):  # the module has clipped, and may zero them at once
            before = gradient_norm(pl_module) if sees_clipping(pl_module) else None
            self._keep_update(before, parameters, zeros)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the micro-batch's values; the gradients are still there as the optimizer saw them."""
        if not is_skipped(outputs, pl_module):
            columns = {name: read_output(outputs, key, self, name) for name, key in self._keys.items()}
            self.collect(trainer, columns)
            self._keep_difference(columns["step"])
        if self._before is not None:
            parameters, before, zeros = self._before
            if any(p.grad is not None for p in parameters):  # without any, the update was skipped
                self._keep_update(before, parameters, zeros)
            self._before = None

    def _keep_update(self, before: Tensor | None, parameters: list[Tensor], zeros: Tensor) -> None:
        self._updates.append((before, total_norm(p.grad for p in parameters)))
        self._zeros.append(zeros)

    def _keep_difference(self, step: Tensor) -> None:
        differences, self._differences = self._differences, []
        if len(differences) > 1:
            raise MisconfigurationException(
                f"GradientNorm: parameters_every needs one backward pass per training_step, found {len(differences)}; "
                "call manual_backward once per batch, or set parameters_every=0"
            )
        self._measured += [(step, difference) for difference in differences]

    # --- the round -----------------------------------------------------------------------------------------------

    def report(self, trainer: Trainer, number: int, rows: Rows) -> Mapping[str, float]:
        """Writes the arrays, plots, and returns the statistics."""
        rows = {**unmasked(rows), **self._per_update(), **self._per_micro_batch()}
        path = self.write(trainer, "gradient", number, rows)
        if "velocity" in rows:
            log_histograms(trainer, "gradient/velocity/histogram", rows["step"], rows["velocity"], self.per_step)
        if trainer.is_global_zero and is_due(trainer, number, self.draw_every, trainer.should_stop):
            self._plot(trainer, rows, f"round {number}", path)
        statistics = gradient_statistics(rows)
        if scaler(trainer) is not None and number > 1 and not self._warned:
            self._warned = self._warn(statistics.get("gradient/zero_share", 0.0), number)
        return statistics

    def _warn(self, zeros: float, number: int) -> bool:
        if zeros > MANY_ZEROS:
            rank_zero_warn(
                f"GradientNorm: {zeros:.0%} of the gradient's entries were exactly 0 in round {number}: float16 "
                "underflows. Give the trainer's precision plugin a GradScaler with a larger init_scale, or train in "
                "bf16-mixed"
            )
        return zeros > MANY_ZEROS

    def _plot(self, trainer: Trainer, rows: Rows, title: str, path: Path | None) -> None:
        curves = {name: _curve(rows, name) for name in ("velocity", "parameters")}
        panels = {f"d loss / d {name}": {"this run": curve} for name, curve in curves.items() if curve}
        if panels:
            picture = path.with_suffix(".png") if path else None
            log_figure(trainer, "gradient/figure", gradient_figure(panels, title=title), trainer.global_step, picture)
        for name, curve in curves.items():
            log_step_chart(trainer, f"gradient/{name}/by_step", {"mean norm": curve}, f"d loss / d {name}")

    def _per_update(self) -> Rows:
        columns = {"norm_before": [before for before, _ in self._updates if before is not None]}
        columns |= {"norm_after": [after for _, after in self._updates], "zero_share": self._zeros}
        return {name: np.array([float(value) for value in values]) for name, values in columns.items()}

    def _per_micro_batch(self) -> Rows:
        """Step and norm of each measured micro-batch. Collective: checks that the step is the same on all ranks."""
        steps = [np.unique(steps.cpu().double().numpy()) for steps, _ in self._measured]
        if any(len(set(np.concatenate(at))) > 1 for at in zip(*gather_objects(steps), strict=True)):
            raise MisconfigurationException(
                "GradientNorm: parameters_every needs micro-batches of one denoising step, the same on all ranks, "
                "and found one that mixes steps; batch by step, or set parameters_every=0"
            )
        if not steps:
            return {}
        norms = np.array([float(norm) for _, norm in self._measured])
        return {"parameter_step": step_index(np.concatenate(steps)), "parameters": norms}

    def state_dict(self) -> dict[str, Any]:
        """The round so far: the rows of all ranks, and the norms, which are equal on all."""
        state = super().state_dict()
        if state:
            state["updates"] = [(None if a is None else a.cpu(), b.cpu()) for a, b in self._updates]
            state["zeros"] = [zeros.cpu() for zeros in self._zeros]
            state["measured"] = [(steps.cpu(), norm.cpu()) for steps, norm in self._measured]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the round in progress."""
        super().load_state_dict(state_dict)
        self._updates, self._measured = list(state_dict["updates"]), list(state_dict["measured"])
        self._zeros = list(state_dict.get("zeros", []))


def gradient_statistics(rows: Rows) -> dict[str, float]:
    """The scalars that `GradientNorm` logs, from the arrays it writes."""
    out: dict[str, float] = {}
    for name in ("velocity", "parameters"):
        if curve := _curve(rows, name):
            out |= {f"gradient/{name}/t{t:02d}": mean for t, mean in curve.items()}
            out[f"gradient/{name}/max_over_min"] = max_over_min(curve)
    before, after = rows["norm_before"], rows["norm_after"]
    if before.size:
        out["gradient/norm_before_clipping"] = float(before.mean())
        out["gradient/clipped"] = float(np.mean(after < before * (1 - CLIP_TOLERANCE)))
    if after.size:
        out["gradient/norm_after_clipping"] = float(after.mean())
    if rows["zero_share"].size:
        out["gradient/zero_share"] = float(rows["zero_share"].mean())
    return out


def _curve(rows: Rows, name: str) -> dict[int, float]:
    """Mean norm by step; empty if it was not measured."""
    step = "parameter_step" if name == "parameters" else "step"
    return {t: float(v.mean()) for t, v in split(rows[step], rows[name]).items()} if name in rows else {}
