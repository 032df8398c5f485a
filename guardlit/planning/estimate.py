"""Compute, memory and disk of a run, from a skeleton of its policy."""

from __future__ import annotations

import math
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from guardlit.devices.meter import Cost, backward, measured
from guardlit.devices.storage import bytes_of, pinned_bytes
from guardlit.planning.calls import calls_per_image
from guardlit.planning.run import PlannedRun
from guardlit.policies.base import Footprint
from guardlit.rounds.merging import Decision, decision, evaluating, merges_evaluation
from guardlit.types import Transition

META = torch.device("meta")


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
class Memory:
    """Bytes on one rank.

    Attributes:
        parts: what is stored, and what each phase allocates temporarily.
        phases: the peak of each phase of a round, on the device.
        host: host memory if the run trains on a GPU; 0 on a CPU, where the phases include it.
        other_checkpointing: the training phase with the other setting of gradient checkpointing.
        scorers_known: whether the scorers' weights are included.
    """

    parts: dict[str, int]
    phases: dict[str, int]
    host: int
    other_checkpointing: int
    scorers_known: bool

    @property
    def peak(self) -> int:
        """The largest of all phases."""
        return max(self.phases.values())


@dataclass(frozen=True)
class Estimate:
    """What one run takes.

    Attributes:
        compute: per image.
        memory: per rank.
        footprint: of the policy.
        image_bytes: of one image without compression.
        optimizer: bytes of the optimizer's state.
        trajectories: bytes of a round's trajectories on one rank.
    """

    compute: Compute
    memory: Memory
    footprint: Footprint
    image_bytes: int
    optimizer: int
    trajectories: int


@dataclass(frozen=True)
class _Costs:
    """Measurements on the skeleton, at the batch sizes of the run."""

    plain: Cost
    rollout: Cost
    evaluation: Cost
    decoding: Cost
    training: Cost
    other: Cost
    merged: int
    batch: int
    image: int
    optimizer: int


def estimate(run: PlannedRun) -> Estimate:
    """Measure a run, on a skeleton that replaces the module's policy.

    Raises:
        GuardlitError: missing model files, or settings that no run can have.
    """
    module, plan = run.module, run.plan
    own, other = (module.policy.skeleton(on) for on in (None, not module.policy.gradient_checkpointing))
    module.policy = other
    other_training = _training(run)[0]
    module.policy = own
    footprint, elements = own.footprint(), math.prod(own.latent_shape)
    training, batch = _training(run)
    decoding, image = _decoding(run, run.data.rollout_batch)
    rows, rollout, evaluation = run.data.rollout_batch, module.rollout, module.evaluation
    how = _merging(run)
    beside = _forward(run, rows, rollout.guidance_scale, nullcontext())
    costs = _Costs(
        plain=_forward(run, 1, 1.0, nullcontext()),
        rollout=_forward(run, rows, rollout.guidance_scale, own.merged()) if how == "always" else beside,
        evaluation=_forward(run, rows, evaluation.guidance_scale, evaluating(own, rollout.merge)),
        merged=0 if how == "never" else footprint.merged // run.shards,
        decoding=decoding,
        image=image,
        training=training,
        other=other_training,
        batch=batch,
        optimizer=_optimizer_bytes(run) // run.shards,
    )
    # measured in a later update; in a round's first one the old policy makes no forward pass
    again = 0.0 if module.old_velocity == "stored" else beside.flops / rows
    trained = costs.training.flops / plan.micro_batch - again / plan.updates_per_round
    compute = Compute(
        forward=costs.plain.flops,
        rollout=costs.rollout.flops / rows * calls_per_image(run),
        training=trained * plan.train_steps * plan.inner_epochs,
        evaluation=costs.evaluation.flops / rows * evaluation.num_inference_steps,
        decoding=costs.decoding.flops / rows,
    )
    tables = 1 + module.old.keeps(run.rows_a_call, plan.micro_batch)  # states, and velocities if they are stored
    trajectories = tables * plan.local_images * plan.train_steps * elements * 4
    memory = _memory(run, _shard(footprint, run.shards), costs, trajectories, elements)
    return Estimate(compute, memory, footprint, costs.image, costs.optimizer, trajectories)


# measurements on the skeleton -----------------------------------------------------------------------------------------


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
    module, batch = run.module, _transition(run)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)  # stored, and counted separately
    with measured(run.half, run.on_gpu) as cost:
        backward(module.training_step(batch, 0)["loss"])
    module.outputs = []
    tensors = [*batch.conditioning.values(), *(t for t in vars(batch).values() if isinstance(t, Tensor))]
    return cost, sum(t.numel() * t.element_size() for t in tensors)


def _transition(run: PlannedRun) -> Transition:
    policy, rows = run.module.policy, run.plan.micro_batch
    return Transition.blank(rows, policy.latent_shape, policy.conditioning([""] * rows), META)


def _optimizer_bytes(run: PlannedRun) -> int:
    """State of the configured optimizer after a step."""
    optimizer = run.module.make_optimizer([p for p in run.module.parameters() if p.requires_grad])
    optimizer.step()
    return bytes_of(v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


# peaks of the phases --------------------------------------------------------------------------------------------------


def _shard(footprint: Footprint, shards: int) -> Footprint:
    """The footprint on one rank of a sharded run."""
    sharded = ("frozen", "trained", "copies", "copies_pinned", "cast", "merged")
    return replace(footprint, **{name: getattr(footprint, name) // shards for name in sharded})


def _memory(run: PlannedRun, footprint: Footprint, costs: _Costs, trajectories: int, elements: int) -> Memory:
    plan, gpu = run.plan, run.on_gpu
    scorers = run.module.reward.weight_bytes()
    copies_here = footprint.copies if not (footprint.copies_on_host and gpu) else 0
    cached = min(prompts_of(run), footprint.remembered or sys.maxsize) * footprint.embedding
    batch = run.module.policy.conditioning([""])
    network = (footprint.frozen + footprint.trained) * run.shards
    gathered = 0 if run.shards == 1 else network if run.stays_gathered else footprint.gathered
    embeddings = plan.prompts_per_round * sum(t.numel() * t.element_size() for t in batch.values())
    parts = {
        "frozen weights": footprint.frozen + footprint.buffers,
        "trained weights": footprint.trained,
        "gradients": footprint.trained,
        "optimizer": costs.optimizer,
        "average (EMA)": footprint.trained if run.average else 0,
        "old policy, reference": footprint.copies,
        "adapters in half precision": footprint.cast,
        "merged weights, while drawing": costs.merged,
        "gathered for a forward pass": gathered,
        "VAE": footprint.decoder,
        "scorers": scorers or 0,
        "text encoders, while encoding": footprint.encoders,
        "embeddings of a round": embeddings,
        "embeddings in the host's memory": cached,
        "trajectories of a round": trajectories,
        "rollout forward": costs.rollout.peak,
        "decoding": costs.decoding.peak,
        "training forward and backward": costs.training.peak + costs.batch,
    }
    kept = ("frozen weights", "trained weights", "average (EMA)", "gathered for a forward pass", "scorers")
    called = footprint.decoder_on_host and gpu  # the VAE is on the GPU only while it decodes
    decoding = costs.decoding.peak + called * footprint.decoder
    base = sum(parts[name] for name in kept) + footprint.cast + copies_here + (not called) * footprint.decoder
    base += (not gpu) * (cached + footprint.host_resident)
    stepped = footprint.trained + costs.optimizer
    again = stepped if run.rounds > 1 else 0  # from the second round on, with gradients and optimizer state
    resting = 0 if gpu and run.module.rollout.trajectories == "host" else trajectories
    batch_fraction = min(run.data.rollout_batch / plan.local_images, 1)
    # and a batch before it is copied to the trajectories
    drawn = resting + int(trajectories * batch_fraction) + run.data.rollout_batch * elements * 4
    merged = merges_evaluation(run.module.policy, run.module.rollout.merge)
    validation = costs.evaluation.peak + (footprint.merged if merged else 0)
    training = base + stepped + resting + embeddings + costs.batch
    away = footprint.frozen * (footprint.encoded_alone and gpu and run.shards == 1)
    phases = {
        "encoding": base + footprint.encoders - away,
        "rollout": base + again + embeddings + drawn + max(costs.rollout.peak, decoding) + costs.merged,
        "training": training + costs.training.peak,
        "update": training + (footprint.trained if gpu else 0),
        "validation": base + stepped + resting + embeddings + max(validation, decoding),
    }
    if not run.data.val_source:
        del phases["validation"]
    waiting = footprint.host_resident + called * footprint.decoder + away
    table = plan.local_images * plan.train_steps * elements * 4
    pinned = footprint.copies_pinned + (trajectories - resting) // table * pinned_bytes(table)
    host = (cached + waiting + pinned) if gpu else 0
    return Memory(parts, phases, host, training + costs.other.peak, scorers is not None)


def prompts_of(run: PlannedRun) -> int:
    """Number of prompts that a run encodes; those of one round for a data set on the hub."""
    train, val = run.prompts()
    return (run.plan.prompts_per_round if train is None else train) + (val or 0) + 1
