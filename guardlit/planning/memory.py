"""Memory of a rank: what is stored, and the peak of each phase of a round."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from guardlit.devices.storage import pinned_bytes, size_of
from guardlit.planning.costs import Costs
from guardlit.planning.run import PlannedRun
from guardlit.policies.base import Footprint
from guardlit.rounds.merging import merges_evaluation


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


def table_bytes(run: PlannedRun, elements: int) -> int:
    """Bytes of a round's states on one rank, float32; velocities take as many."""
    return run.plan.local_images * run.plan.train_steps * elements * 4


def memory_of(run: PlannedRun, costs: Costs, trajectories: int) -> Memory:
    """Memory of a run from its measured costs.

    Args:
        run: to plan.
        costs: as measured.
        trajectories: bytes of a round's trajectories on one rank.
    """
    footprint, gpu = _sharded(costs.footprint, run.shards), run.on_gpu
    parts = _parts(run, costs, footprint, trajectories)
    kept = ("frozen weights", "trained weights", "average (EMA)", "gathered for a forward pass", "scorers")
    copies_here = footprint.copies if not (footprint.copies_on_host and gpu) else 0
    called = footprint.decoder_on_host and gpu  # the VAE is on the GPU only while it decodes
    decoding = costs.decoding.peak + called * footprint.decoder
    base = sum(parts[name] for name in kept) + footprint.cast + copies_here + (not called) * footprint.decoder
    cached, embeddings = parts["embeddings in the host's memory"], parts["embeddings of a round"]
    base += (not gpu) * (cached + footprint.host_resident)
    stepped = footprint.trained + parts["optimizer"]
    again = stepped if run.rounds > 1 else 0  # from the second round on, with gradients and optimizer state
    resting = 0 if gpu and run.module.rollout.trajectories == "host" else trajectories
    batch_fraction = min(run.rollout_batch / run.plan.local_images, 1)
    # and a batch before it is copied to the trajectories
    drawn = resting + int(trajectories * batch_fraction) + run.rollout_batch * costs.elements * 4
    merged = merges_evaluation(run.module.policy, run.module.rollout.merge)
    validation = costs.evaluation.peak + (footprint.merged if merged else 0)
    training = base + stepped + resting + embeddings + costs.batch
    away = footprint.frozen * (footprint.encoded_alone and gpu and run.shards == 1)
    rollout = max(costs.rollout.peak, decoding) + parts["merged weights, while drawing"]
    phases = {
        "encoding": base + footprint.encoders - away,
        "rollout": base + again + embeddings + drawn + rollout,
        "training": training + costs.training.peak,
        "update": training + (footprint.trained if gpu else 0),
        "validation": base + stepped + resting + embeddings + max(validation, decoding),
    }
    if not run.data.val_source:
        del phases["validation"]
    waiting = footprint.host_resident + called * footprint.decoder + away
    table = table_bytes(run, costs.elements)
    pinned = footprint.copies_pinned + (trajectories - resting) // table * pinned_bytes(table)
    host = (cached + waiting + pinned) if gpu else 0
    known = run.module.reward.weight_bytes() is not None
    return Memory(parts, phases, host, training + costs.other_training.peak, known)


def _sharded(footprint: Footprint, shards: int) -> Footprint:
    """The footprint on one rank of a sharded run."""
    sharded = ("frozen", "trained", "copies", "copies_pinned", "cast", "merged")
    return replace(footprint, **{name: getattr(footprint, name) // shards for name in sharded})


def _parts(run: PlannedRun, costs: Costs, footprint: Footprint, trajectories: int) -> dict[str, int]:
    network = (footprint.frozen + footprint.trained) * run.shards
    gathered = 0 if run.shards == 1 else network if run.stays_gathered else footprint.gathered
    prompt = size_of(run.module.policy.conditioning([""]).values())
    return {
        "frozen weights": footprint.frozen + footprint.buffers,
        "trained weights": footprint.trained,
        "gradients": footprint.trained,
        "optimizer": costs.optimizer // run.shards,
        "average (EMA)": footprint.trained if run.average else 0,
        "old policy, reference": footprint.copies,
        "adapters in half precision": footprint.cast,
        "merged weights, while drawing": footprint.merged if costs.merges_rollout else 0,
        "gathered for a forward pass": gathered,
        "VAE": footprint.decoder,
        "scorers": run.module.reward.weight_bytes() or 0,
        "text encoders, while encoding": footprint.encoders,
        "embeddings of a round": run.plan.prompts_per_round * prompt,
        "embeddings in the host's memory": min(run.encoded, footprint.remembered or sys.maxsize) * footprint.embedding,
        "trajectories of a round": trajectories,
        "rollout forward": costs.rollout.peak,
        "decoding": costs.decoding.peak,
        "training forward and backward": costs.training.peak + costs.batch,
    }
