"""A sampler's steps as a table: its coefficients, and how large a gradient each objective gives them.

No network is needed for it: a step is x_next = a x + g v + s noise, and Table 2's gradient scales follow from a, g, s.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from guardlit.objective import OBJECTIVES
from guardlit.sde import Coefficients


@dataclass(frozen=True)
class ScheduleTable:
    """One sampler on one schedule, step by step.

    Attributes:
        coefficients: t, dt, a, g, s and |g|/s by name, (T,) float64; |g|/s is NaN where the step is deterministic.
        gradient_scales: predicted size of the loss gradient by objective, (T,) float64; NaN where the step is
            deterministic, for it has no ratio.
        trained: which steps are trained, (T,) bool.
    """

    coefficients: Mapping[str, Tensor]
    gradient_scales: Mapping[str, Tensor]
    trained: Tensor

    def __len__(self) -> int:
        return len(self.trained)

    def spread(self, scale: Tensor) -> float:
        """Largest over smallest value at the trained steps, of (T,); NaN where none is trained."""
        values = scale[self.trained]
        return float(values.max() / values.min()) if len(values) else math.nan


def schedule_table(coefficients: Coefficients, trained: Collection[int]) -> ScheduleTable:
    """Lay out a sampler's steps.

    Args:
        coefficients: of T steps.
        trained: indices of the steps that are trained.

    Raises:
        ValueError: a trained step that does not exist, or is deterministic and hence has no ratio.
    """
    c = coefficients
    for step in trained:
        if not 0 <= step < len(c) or c.std[step] == 0:
            raise ValueError(
                f"step {step} cannot be trained: steps 0 to {len(c) - 1} exist, and those with s = 0 are out"
            )
    noisy = c.std > 0

    def of_noisy_steps(values: Tensor) -> Tensor:
        return torch.where(noisy, values, torch.nan)

    return ScheduleTable(
        coefficients={
            "t": c.sigmas[:-1],
            "dt": c.dt,
            "a": c.sample,
            "g": c.velocity,
            "s": c.std,
            "|g|/s": of_noisy_steps(c.velocity.abs() / c.std),
        },
        gradient_scales={p.__name__: of_noisy_steps(p().gradient_scale(c.velocity, c.std, c.dt)) for p in OBJECTIVES},
        trained=torch.tensor([step in trained for step in range(len(c))]),
    )


def write_csv(path: Path, table: ScheduleTable) -> None:
    """Write every step as a row, at full precision; NaN stays an empty cell."""
    columns = {**table.coefficients, **table.gradient_scales}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "trained", *columns])
        for step in range(len(table)):
            cells = [float(column[step]) for column in columns.values()]
            writer.writerow([step, int(table.trained[step]), *("" if math.isnan(cell) else cell for cell in cells)])
