"""Compute and memory of a run."""

from __future__ import annotations

from dataclasses import dataclass

from guardlit.planning.calls import calls_per_image
from guardlit.planning.costs import Costs, measure
from guardlit.planning.memory import Memory, memory_of, table_bytes
from guardlit.planning.run import PlannedRun
from guardlit.policies.base import Footprint


@dataclass(frozen=True)
class Compute:
    """Floating-point operations per image, 2 a multiply-add.

    Attributes:
        forward: one forward pass of the network, without guidance.
        rollout: sampling a training image.
        training: all its forward and backward passes, those of inner epochs and of gradient checkpointing included.
        evaluation: sampling a validation image.
        decoding: decoding a training or validation image by the VAE.
    """

    forward: float
    rollout: float
    training: float
    evaluation: float
    decoding: float


@dataclass(frozen=True)
class Estimate:
    """What one run takes.

    Attributes:
        compute: per image.
        memory: per rank.
        footprint: of the policy.
        image_bytes: of one image without compression.
        optimizer: bytes of the optimizer's state on one rank.
        trajectories: bytes of a round's trajectories on one rank.
    """

    compute: Compute
    memory: Memory
    footprint: Footprint
    image_bytes: int
    optimizer: int
    trajectories: int


def estimate(run: PlannedRun) -> Estimate:
    """Measure a run; see `costs.measure`, also for what is raised."""
    costs = measure(run)
    tables = 1 + run.module.old.keeps(run.rows_a_call, run.plan.micro_batch)  # states, and velocities if stored
    trajectories = tables * table_bytes(run, costs.elements)
    memory = memory_of(run, costs, trajectories)
    optimizer = memory.parts["optimizer"]
    return Estimate(_compute(run, costs), memory, costs.footprint, costs.image, optimizer, trajectories)


def _compute(run: PlannedRun, costs: Costs) -> Compute:
    module, plan, rows = run.module, run.plan, run.rollout_batch
    # measured in a later update; in a round's first one the old policy makes no forward pass
    again = 0.0 if module.old_velocity == "stored" else costs.separate.flops / rows
    trained = costs.training.flops / plan.micro_batch - again / plan.updates_per_round
    return Compute(
        forward=costs.forward.flops,
        rollout=costs.rollout.flops / rows * calls_per_image(run),
        training=trained * plan.train_steps * plan.inner_epochs,
        evaluation=costs.evaluation.flops / rows * run.evaluation_calls,
        decoding=costs.decoding.flops / rows,
    )
