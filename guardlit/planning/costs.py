"""Costs of a run's forward and backward passes, measured on a skeleton of its policy."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from guardlit.devices.meter import Cost, backward, measured
from guardlit.devices.storage import bytes_of, size_of
from guardlit.planning.run import PlannedRun
from guardlit.policies.base import Footprint
from guardlit.rounds.merging import Decision, decision, evaluating
from guardlit.types import Transition

META = torch.device("meta")


@dataclass(frozen=True)
class Costs:
    """Measurements on the skeleton, at the batch sizes of the run.

    Attributes:
        footprint: of the policy.
        elements: D, latent elements of an image.
        forward: one image, without guidance.
        separate: a rollout batch, with a separate adapter.
        rollout: a rollout batch, merged or not as the run has it.
        merges_rollout: whether the adapter is merged into the weights there, or may be.
        evaluation: a batch of validation images.
        decoding: a batch of images.
        training: forward and backward pass of a micro-batch, with the most pairs of the data loss that one has.
        pair: FLOP of a forward and backward pass of one pair of the data loss.
        pairs: of the data loss in such a micro-batch.
        other_training: the same with the other setting of gradient checkpointing.
        batch: bytes of a micro-batch.
        image: bytes of an image without compression.
        optimizer: bytes of the optimizer's state.
    """

    footprint: Footprint
    elements: int
    forward: Cost
    separate: Cost
    rollout: Cost
    merges_rollout: bool
    evaluation: Cost
    decoding: Cost
    training: Cost
    pair: float
    pairs: int
    other_training: Cost
    batch: int
    image: int
    optimizer: int


def measure(run: PlannedRun) -> Costs:
    """Measure a run, on a skeleton that replaces the module's policy.

    Raises:
        GuardlitError: missing model files, or settings that no run can have.
    """
    module, rows = run.module, run.rollout_batch
    run.check_pairs()
    own, other = (module.policy.skeleton(on) for on in (None, not module.policy.gradient_checkpointing))
    module.policy = other
    other_training, _ = _training(run)
    module.policy = own
    footprint = own.footprint()
    training, batch = _training(run)
    pair, pairs = _pair(run)
    decoding, image = _decoding(run, rows)
    how, guidance = _merging(run), module.rollout.guidance_scale
    separate = _forward(run, rows, guidance, nullcontext())
    validating = evaluating(own, module.rollout.merge)
    return Costs(
        footprint=footprint,
        elements=math.prod(own.latent_shape),
        forward=_forward(run, 1, 1.0, nullcontext()),
        separate=separate,
        rollout=_forward(run, rows, guidance, own.merged()) if how == "always" else separate,
        merges_rollout=how != "never",
        evaluation=_forward(run, rows, module.evaluation.guidance_scale, validating),
        decoding=decoding,
        training=training,
        pair=pair,
        pairs=pairs,
        other_training=other_training,
        batch=batch,
        image=image,
        optimizer=_optimizer_bytes(run),
    )


def _merging(run: PlannedRun) -> Decision:
    """Whether the rollout's adapter is merged into the weights."""
    module, plan, rows = run.module, run.plan, run.rows_a_call
    half = run.half is not None or module.policy.forward_dtype is not None
    kept, batches = module.old.keeps(rows, plan.micro_batch), math.ceil(plan.local_images / run.rollout_rows)
    merge, mergeable = module.rollout.merge, module.policy.mergeable
    return decision(merge, mergeable, kept, rows == plan.micro_batch, batches, half)


def _forward(run: PlannedRun, rows: int, guidance: float, weights: AbstractContextManager[None]) -> Cost:
    policy = run.module.policy
    conditioning = policy.conditioning([""] * rows)
    latents, sigma = torch.empty(rows, *policy.latent_shape, device=META), torch.empty(rows, device=META)
    with weights, torch.no_grad(), measured(run.half, run.on_gpu) as cost:
        policy.velocity(latents, sigma, conditioning, guidance)
    return cost


def _decoding(run: PlannedRun, rows: int) -> tuple[Cost, int]:
    """The cost of decoding `rows` images, and the bytes of one."""
    latents = torch.empty(rows, *run.module.policy.latent_shape, device=META)
    with measured() as cost:
        images = run.module.policy.decode(latents)
    return cost, images[0].numel()


def _training(run: PlannedRun) -> tuple[Cost, int]:
    """The cost of a micro-batch's forward and backward pass in the module's own step, and the micro-batch's bytes."""
    module, batch = run.module, _blank(run)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)  # stored, and counted separately
    with measured(run.half, run.on_gpu) as cost:
        backward(module.training_step(batch, 0)["loss"])
    module.outputs = []
    return cost, size_of([*batch.conditioning.values(), *(t for t in vars(batch).values() if isinstance(t, Tensor))])


def _pair(run: PlannedRun) -> tuple[float, int]:
    """FLOP of one pair of the data loss, and the most pairs of a micro-batch; 0 without such a loss."""
    module, batch = run.module, _blank(run)
    if module.data_term is None:
        return 0.0, 0
    with measured(run.half, run.on_gpu) as cost:
        found = module.data_term.add(torch.zeros((), device=META), module, batch, 0)
        backward(found["loss"])
    pairs = len(found["data_loss"])
    return cost.flops / pairs, pairs


def _blank(run: PlannedRun) -> Transition:
    """A micro-batch without content."""
    policy, rows = run.module.policy, run.plan.micro_batch
    return Transition.blank(rows, policy.latent_shape, policy.conditioning([""] * rows), META)


def _optimizer_bytes(run: PlannedRun) -> int:
    """State of the configured optimizer after a step."""
    optimizer = run.module.make_optimizer([p for p in run.module.parameters() if p.requires_grad])
    optimizer.step()
    return bytes_of(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))
