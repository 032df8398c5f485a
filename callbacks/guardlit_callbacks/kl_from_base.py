"""How far training has moved the policy: the KL of its sampling steps from the base model's."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from guardlit_callbacks.bases.validation import ValidationCallback, log_validation
from guardlit_callbacks.distributed.gather import distinct, interleave
from guardlit_callbacks.tools.folders import run_dir
from guardlit_callbacks.tools.lightning import LightningModule, MisconfigurationException, Trainer
from guardlit_callbacks.tools.logging import log_scalars
from guardlit_callbacks.tools.outputs import read_column, read_table


def gaussian_step_kl(difference: Tensor, gain: Tensor | float, std: Tensor | float) -> Tensor:
    """The exact KL of a Gaussian sampling step from another one of the same noise, in nats.

    A step x_next = a x + g v + s noise is a Gaussian with mean a x + g v. From one with velocity v_base in the same
    state x its KL is g^2 ||v - v_base||^2 / (2 s^2), summed over the elements of a sample.

    Args:
        difference: v - v_base, (B, ...), any float dtype; computed in float64. Or the difference of the means, with a
            gain of 1.
        gain: g, a number or (B,).
        std: s > 0, a number or (B,).

    Returns:
        (B,) float64.

    Raises:
        ValueError: `difference` has no dimension besides B.
    """
    if difference.ndim < 2:
        raise ValueError(f"gaussian_step_kl: difference must be (B, ...), found {tuple(difference.shape)}")
    squared = difference.double().square().flatten(1).sum(1)
    gain, std = (value.double() if isinstance(value, Tensor) else value for value in (gain, std))
    return gain**2 * squared / (2 * std**2)


class _Sample(NamedTuple):
    """The KL of each step in nats, and the sample's index where given."""

    kl: list[float]
    number: int | None


class KLFromBase(ValidationCallback[_Sample]):
    """Logs the KL of the policy from the base model on the validation samples' trajectories.

    Gold scores against the square root of the KL compare runs that move at different speeds (Gao et al. 2023, arXiv
    2210.10760). `validation_step` returns the KL of each sampling step from the base model's in the same state, one row
    per sample; `gaussian_step_kl` computes a column of it. If the states are those of the policy's trajectories, the
    sum over steps is the KL of the trajectories, by the chain rule.

    Logged after each validation:

    | key | unit |
    |---|---|
    | `kl/from_base` | nats: the sum over steps and latent elements, mean over samples |
    | `kl/sqrt_from_base` | its square root |
    | `kl/from_base/tTT` | nats of step TT, mean over samples; with `per_step` only |

    The run's folder gets `kl.csv` with the columns `step`, `from_base` and `sqrt_from_base`, one row an evaluation.

    Example:
        ```python
        from guardlit_callbacks import KLFromBase, gaussian_step_kl

        class Module(LightningModule):
            def validation_step(self, batch, batch_idx):
                kl = []
                for step, x, v in self.sample(batch):  # yours: each step's states and velocities, (B, C, H, W)
                    v_base = self.base_velocity(x, step)
                    kl.append(gaussian_step_kl(v - v_base, gain=self.g[step], std=self.s[step]))
                return {"kl_from_base": torch.stack(kl, dim=1)}  # (B, T)

        Trainer(callbacks=[KLFromBase()])
        ```

    Args:
        kl: key of the KL of each sample's steps in what `validation_step` returns, (B, T) in nats, with the same T
            every time.
        index: key of each sample's index in the validation set, (B,); a sample that a distributed sampler repeats then
            counts once. None if there are no repeats.
        per_step: also log each step.
        dataloader: index of the validation dataloader to read, where there are several.

    Raises:
        MisconfigurationException: the module has no `validation_step`; a key is missing in what it returned, or holds
            something else; a KL is negative, NaN or infinite; several validation dataloaders without `dataloader`.
    """

    def __init__(
        self,
        kl: str = "kl_from_base",
        index: str | None = None,
        per_step: bool = False,
        dataloader: int | None = None,
    ) -> None:
        super().__init__(dataloader)
        self.kl, self.index, self.per_step = kl, index, per_step
        self.history: list[dict[str, float]] = []
        self._fault: str | None = None

    def collect(self, outputs: Any) -> list[_Sample]:
        """Reads the batch's rows."""
        rows = read_table(outputs, self.kl, self, "kl").double().tolist()
        indices: list[int | None] = [None] * len(rows)
        if self.index is not None:
            indices = read_column(outputs, self.index, self, "index", len(rows)).tolist()
        return [_Sample(row, index) for row, index in zip(rows, indices, strict=True)]

    def report(self, trainer: Trainer, pl_module: LightningModule, ranks: Sequence[Sequence[_Sample]]) -> None:
        """Logs the means over all samples, and writes the evaluations so far."""
        samples = interleave(ranks)
        if self.index is not None:
            samples = [samples[i] for i in distinct([s.number for s in samples if s.number is not None])]
        self._fault = self._find_fault(samples)
        if self._fault is not None:
            return
        total = math.fsum(math.fsum(sample.kl) for sample in samples) / len(samples)
        row = {"from_base": total, "sqrt_from_base": math.sqrt(total)}
        step = trainer.global_step
        self.history = [*(old for old in self.history if old["step"] < step), {"step": step, **row}]
        log_validation(trainer, pl_module, {f"kl/{name}": value for name, value in row.items()})
        if self.per_step:  # straight to the loggers: the time of `pl_module.log` is quadratic in the number of keys
            columns = zip(*(sample.kl for sample in samples), strict=True)
            means = {f"kl/from_base/t{t:02d}": math.fsum(kl) / len(samples) for t, kl in enumerate(columns)}
            log_scalars(trainer, means, step)
        folder = run_dir(trainer)
        if folder and trainer.is_global_zero:
            _write(folder / "kl.csv", self.history)

    def _find_fault(self, samples: Sequence[_Sample]) -> str | None:
        """What is wrong with the values of all ranks, equal on every rank."""
        if len(lengths := sorted({len(sample.kl) for sample in samples})) > 1:
            return f"KLFromBase: the output {self.kl!r} has {lengths} columns; every batch must have the same steps"
        for place, sample in enumerate(samples):
            for step, value in enumerate(sample.kl):
                if not 0 <= value < math.inf:
                    number = place if sample.number is None else sample.number
                    return (
                        f"KLFromBase: the KL of sample {number} at step {step} is {value}; it must be finite and at "
                        "least 0: the weights or the base are broken, or the step has no noise"
                    )
        return None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses faulty values, after the module has had the chance to name the cause at the epoch's end."""
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise MisconfigurationException(fault)

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far; equal on every rank."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the evaluations."""
        self.history = list(state_dict["history"])


def _write(path: Path, history: Sequence[dict[str, float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", "from_base", "sqrt_from_base"])
        writer.writeheader()
        writer.writerows(history)
