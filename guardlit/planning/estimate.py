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
        training: all its forward and backward passes, those of inner epochs, of gradient checkpointing and of its
            share of the data loss included.
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
        latents: bytes of the latents of the data loss's images.
    """

    compute: Compute
    memory: Memory
    footprint: Footprint
    image_bytes: int
    optimizer: int
    trajectories: int
    latents: int = 0


def estimate(run: PlannedRun) -> Estimate:
    """Measure a run; see `costs.measure`, also for what is raised."""
    costs = measure(run)
    tables = 1 + run.module.old.keeps(run.rows_a_call, run.plan.micro_batch)  # states, and velocities if stored
    trajectories = tables * table_bytes(run, costs.elements)
    memory = memory_of(run, costs, trajectories)
    optimizer = memory.parts["optimizer"]
    latents = len(run.pairs or ()) * costs.elements * 4
    return Estimate(_compute(run, costs), memory, costs.footprint, costs.image, optimizer, trajectories, latents)


def _compute(run: PlannedRun, costs: Costs) -> Compute:
    module, plan, rows = run.module, run.plan, run.rollout_batch
    # measured in a later update; in a round's first one the old policy makes no forward pass
    again = 0.0 if module.old_velocity == "stored" else costs.separate.flops / rows
    transitions = (costs.training.flops - costs.pair * costs.pairs) / plan.micro_batch
    trained = transitions - again / plan.updates_per_round
    images = plan.images // plan.updates_per_round
    paired = 0.0 if module.data_term is None else module.data_term.pairs_of(plan) / images
    measured = paired / plan.updates_per_round  # the fixed pairs, once a round
    return Compute(
        forward=costs.forward.flops,
        rollout=costs.rollout.flops / rows * calls_per_image(run),
        training=trained * plan.train_steps * plan.inner_epochs + paired * costs.pair + measured * costs.forward.flops,
        evaluation=costs.evaluation.flops / rows * run.evaluation_calls,
        decoding=costs.decoding.flops / rows,
    )
