"""All objectives on one rollout: what each would clip, how large its gradients are, and which way they point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from torch import Tensor

from guardlit.ablation.calibration import calibrate
from guardlit.errors import GuardlitError
from guardlit.objective import OBJECTIVES, Objective
from guardlit.processes.phases import announce
from guardlit.surrogate import ClipRange

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule
    from guardlit.types import Transition

MEASURES = {
    "clipped_above": "fraction of transitions whose ratio lies above the clip range",
    "clipped_below": "fraction below it",
    "log_ratio_mean": "mean of the log ratio that the objective clips",
    "log_ratio_std": "its standard deviation",
    "velocity_gradient": "mean over transitions of |d loss_b / d velocity_b|",
    "predicted_scale": "that by Table 2, on-policy and up to a constant",
    "parameter_gradient": "|d loss / d parameters| of the step's mean loss",
}
"""Measures of an objective at a denoising step."""


@dataclass(frozen=True)
class Analysis:
    """O objectives at S denoising steps of one rollout.

    Attributes:
        objectives: by name.
        steps: indices of the trained steps.
        sigma: t of each step, (S,).
        measures: `MEASURES`, (O, S) float64 each.
        step_cosines: between the objectives' parameter gradients at each step, (S, O, O); NaN where one is zero.
        cosines: between the gradients over all steps, (O, O).
        gradient_norms: of those, (O,).
        transitions: at each step; they are equal unless a window chooses the steps.
    """

    objectives: Mapping[str, Objective]
    steps: list[int]
    sigma: Tensor
    measures: Mapping[str, Tensor]
    step_cosines: Tensor
    cosines: Tensor
    gradient_norms: Tensor
    transitions: list[int]


def analyze(module: GRPOModule, objectives: Mapping[str, Objective], batch_size: int) -> Analysis:
    """Evaluate objectives on the module's last round, with the policy as it is now.

    The network runs forward once a micro-batch. The O losses use the same graph, and each sends its own gradient
    through it. Two float32 copies of the trainable parameters per objective are kept on the CPU. A KL penalty is not
    part of an objective and is left out. Objectives that leave their clip range to calibration get the one that clips
    `ClipCalibration`'s share of this rollout.

    Args:
        module: in training, after some updates on the round: before the first every ratio is 1.
        objectives: by name.
        batch_size: transitions at once.
    """
    experience = module.experience
    for objective in objectives.values():
        objective.bind(*experience.coefficients.between(*module.rollout.trainable_range))
    places = experience.places()
    everywhere = (batch for there in places.values() for batch in _batches(module, there, batch_size))
    calibrate(module, list(objectives.values()), everywhere)
    everything = sum(map(len, places.values()))
    size = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = torch.zeros(len(objectives), size)
    columns, cosines = [], []
    done = 0
    for there in places.values():
        gradients = torch.zeros_like(total)
        seen = []
        for batch in _batches(module, there, batch_size):
            announce(module.trainer, "analysis", done := done + len(batch), everything)
            seen.append(_evaluate(module, list(objectives.values()), batch, gradients, len(batch) / len(there)))
        columns.append(_summary({name: torch.cat([s[name] for s in seen], dim=1) for name in seen[0]}, gradients))
        cosines.append(cosine_matrix(gradients))
        total.add_(gradients, alpha=len(there) / everything)
    c, steps = experience.coefficients, list(places)
    predicted = [o.gradient_scale(c.velocity[steps], c.std[steps], c.dt[steps]) for o in objectives.values()]
    measures = {name: torch.stack([column[name] for column in columns], dim=1) for name in columns[0]}
    return Analysis(
        objectives=objectives,
        steps=steps,
        sigma=c.sigmas[steps].double(),
        measures={name: (measures | {"predicted_scale": torch.stack(predicted)})[name] for name in MEASURES},
        step_cosines=torch.stack(cosines),
        cosines=cosine_matrix(total),
        gradient_norms=total.norm(dim=1).double(),
        transitions=[len(there) for there in places.values()],
    )


def _batches(module: GRPOModule, there: Sequence[tuple[int, int]], size: int) -> Iterator[Transition]:
    """The transitions at some (row, slot) of the round, `size` at once."""
    for start in range(0, len(there), size):
        rows, slots = zip(*there[start : start + size], strict=True)
        yield module.experience.take(list(rows), list(slots)).to(module.device)


def _evaluate(
    module: GRPOModule, objectives: Sequence[Objective], batch: Transition, gradients: Tensor, fraction: float
) -> dict[str, Tensor]:
    """Measures of each transition, (O, B) each; adds `fraction` times their gradients to (O, P) ones."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    with module.trainer.precision_plugin.train_step_context():
        velocity, old = module.velocities(batch)
    facts: dict[str, list[Tensor]] = {"log_ratio": [], "above": [], "below": [], "velocity_gradient": []}
    for objective, row in zip(objectives, gradients, strict=True):
        leaf = velocity.detach().requires_grad_()
        out = objective(
            velocity=leaf,
            old_velocity=old,
            noise=batch.noise,
            advantage=batch.advantage,
            gain=batch.gain,
            std=batch.std,
            dt=batch.dt,
            sample_weight=batch.sample_weight,
            step=batch.step,
        )
        (gradient,) = torch.autograd.grad(out.loss, leaf)
        # the network is linear in what is sent back through it: at unit size, half precision keeps all of it
        size = gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
        parts = torch.autograd.grad(
            velocity, parameters, gradient / size, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        row.add_((size * torch.cat([part.flatten().float() for part in parts])).cpu(), alpha=fraction)
        facts["log_ratio"].append(out.log_ratio)
        facts["above"].append(out.clipped & (out.log_ratio > 0))
        facts["below"].append(out.clipped & (out.log_ratio < 0))
        facts["velocity_gradient"].append(len(batch) * gradient.flatten(1).norm(dim=1))
    return {name: torch.stack(values).double().cpu() for name, values in facts.items()}


def _summary(facts: Mapping[str, Tensor], gradients: Tensor) -> dict[str, Tensor]:
    """One step's `MEASURES`, (O,) each, of its transitions (O, n) and its parameter gradients (O, P)."""
    return {
        "clipped_above": facts["above"].mean(1),
        "clipped_below": facts["below"].mean(1),
        "log_ratio_mean": facts["log_ratio"].mean(1),
        "log_ratio_std": facts["log_ratio"].std(1, correction=0),
        "velocity_gradient": facts["velocity_gradient"].mean(1),
        "parameter_gradient": gradients.norm(dim=1).double(),
    }


def cosine_matrix(vectors: Tensor) -> Tensor:
    """Cosines between O vectors, (O, P) -> (O, O) float64; NaN for a zero vector."""
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    products = torch.mm(unit, unit.T).double()
    return (products + products.T) / 2  # a matrix product need not be symmetric to the last bit


def with_clips(
    configured: Objective | None, clips: Mapping[str, ClipRange], names: Sequence[str] = ()
) -> dict[str, Objective]:
    """Objectives by name.

    Args:
        configured: the configuration's objective, which replaces the preset of its class.
        clips: clip ranges by name; the others have their published default.
        names: all of them by default.
    """
    classes = {preset.__name__: preset for preset in OBJECTIVES}
    made = {}
    for name in names or classes:
        if name in clips:
            made[name] = classes[name](clip_range=clips[name])
        else:
            made[name] = configured if type(configured) is classes[name] else classes[name]()
    return made


class RolloutAnalysis(pl.Callback):
    """Analyzes the round in progress after some of its updates, and ends the training.

    Args:
        objectives: by name.
        updates: of the round before the analysis; null for all but the last, so that the policy is that of the
            round's last update.
    """

    def __init__(self, objectives: Mapping[str, Objective], updates: int | None = None) -> None:
        self._objectives, self._wanted = objectives, updates
        self.updates = 0
        """Number of updates between the policy that drew the round and the analyzed one."""
        self.result: Analysis | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the round has so many updates."""
        if trainer.world_size > 1:
            raise GuardlitError(f"the analysis needs one process, found {trainer.world_size}: --trainer.devices 1")
        available = trainer.datamodule.plan.updates_per_round  # type: ignore[attr-defined]
        self.updates = max(1, available - 1) if self._wanted is None else self._wanted
        if not 1 <= self.updates <= available:
            raise GuardlitError(
                f"--updates {self.updates}: a round has {available}, and without one of them every ratio is 1"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Transition, batch_idx: int
    ) -> None:
        """Analyze after the last of these updates."""
        updates, rest = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if rest == 0 and updates >= self.updates and self.result is None:
            self.updates = updates
            self.result = analyze(pl_module, self._objectives, len(batch))  # type: ignore[arg-type]
            trainer.should_stop = True
