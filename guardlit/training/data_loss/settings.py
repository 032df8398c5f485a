"""Settings of the flow-matching loss on images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guardlit.errors import GuardlitError, at_least, positive
from guardlit.rounds.plan import RoundPlan


@dataclass(frozen=True)
class DataLoss:
    """The flow-matching loss on images, added to the objective's: DDRL, arXiv 2512.04332.

    It keeps the policy near the images' distribution (the forward KL from it, up to a constant), and takes the place
    of `kl`: no copy of the base model is asked. The images are real ones, or the base model's own, which
    `guardlit sample` draws.

    Attributes:
        weight: factor of the loss (DDRL's `data_beta`).
        images: a folder of images with `metadata.jsonl` (Hugging Face's `imagefolder`), or such a .jsonl file: an
            object with "file_name" and "text" a line.
        pairs_per_update: pairs in an update on all ranks, each at one random timestep; null takes as many as the
            update has images.
        timesteps: `sampler` draws them uniformly from the steps of the rollout that can be trained, as DDRL's program
            does; `logit_normal` as Stable Diffusion 3 was trained (arXiv 2403.03206, section 3.1): sigmoid of a
            standard normal, shifted as the model's schedule is.
    """

    weight: float
    images: str | None = None
    pairs_per_update: int | None = None
    timesteps: Literal["sampler", "logit_normal"] = "sampler"

    def __post_init__(self) -> None:
        positive(**{"model.data_loss.weight": self.weight})
        at_least(1, **{"model.data_loss.pairs_per_update": self.pairs_per_update})

    @property
    def source(self) -> str:
        """The images; raises `GuardlitError` where there are none."""
        if not self.images:
            raise GuardlitError(
                "model.data_loss.images is not set: name a folder of images with metadata.jsonl, such as "
                "`guardlit sample` writes of the base model, or set model.data_loss to null"
            )
        return self.images


@dataclass(frozen=True)
class DataPlan:
    """How the pairs of an update are dealt to ranks and micro-batches.

    Row i of an update belongs to rank i % world size. A rank takes its rows in order, spread evenly over its
    micro-batches. So an update has the same rows at any world size and any micro-batch, and all ranks have equally many
    in each micro-batch, as a sharded network needs.

    Attributes:
        pairs: N, rows of an update on all ranks.
        transitions: of an update on one rank.
        updates: of a round.
        world_size: number of ranks.

    Raises:
        GuardlitError: the pairs do not divide among the ranks.
    """

    pairs: int
    transitions: int
    updates: int
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.pairs % self.world_size:
            raise GuardlitError(
                f"model.data_loss.pairs_per_update={self.pairs} is not divisible by the world size {self.world_size}"
            )

    @classmethod
    def of(cls, settings: DataLoss, plan: RoundPlan) -> DataPlan:
        """That of a round's arithmetic."""
        pairs = settings.pairs_per_update or plan.images_per_update * plan.world_size
        return cls(pairs, plan.images_per_update * plan.train_steps, plan.updates_per_round, plan.world_size)

    @property
    def local(self) -> int:
        """Rows of an update on one rank."""
        return self.pairs // self.world_size

    def rows(self, batch_idx: int, micro_batch: int, rank: int = 0) -> tuple[int, list[int]]:
        """The update of a round's micro-batch of that many transitions, and its rows on a rank."""
        batches = self.transitions // micro_batch
        update, k = divmod(batch_idx, batches)
        own = range(k * self.local // batches, (k + 1) * self.local // batches)
        return update, [row * self.world_size + rank for row in own]

    def most(self, micro_batch: int) -> int:
        """The most rows that a micro-batch has."""
        return -(-self.local * micro_batch // self.transitions)

    def factor(self, micro_batch: int) -> float:
        """What the sum over a micro-batch's rows is multiplied by, to be the mean over the update once accumulated."""
        return self.transitions / micro_batch / self.local
