"""What guardlit asks of a model: embeddings, a schedule, velocities, images, and three sets of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from guardlit.errors import GuardlitError
from guardlit.types import Conditioning

WeightSet = Literal["policy", "old", "reference"]
Shard = Callable[[nn.Module, Sequence[nn.Module]], None]
"""Spreads a network over processes, in place: the network, and the parts of it that are gathered one at a time."""


@dataclass(frozen=True)
class Footprint:
    """What a policy keeps in memory, in bytes.

    Attributes:
        frozen: the network's weights that do not train.
        buffers: of the network; a process of a sharded run has all of them.
        trained: the weights that train.
        copies: the old policy and the reference, where they are weights of their own.
        cast: half-precision copies of adapters, kept from one update to the next.
        merged: copies of the weights that an adapter is on, while it is merged into them.
        gathered: what a process of a sharded run has of others' weights at once: those outside the blocks and, since
            the next block is fetched ahead, the two largest blocks.
        copies_on_host: whether the copies rest in the host's memory and not beside the weights.
        copies_pinned: what they take of it beside a GPU, where they are pinned.
        decoder: what turns latents into images.
        decoder_on_host: whether it rests in the host's memory while it does not decode.
        encoders: what turns prompts into embeddings; in memory only while there are new prompts.
        encoded_alone: whether the frozen weights rest in the host's memory meanwhile.
        waiting: bytes of text encoders, and of a decoder's original, that rest in the host's memory for good.
        embedding: one prompt's embeddings as they are kept.
        remembered: prompts whose embeddings stay in memory at most, while all are on disk; None for all in memory, none
            on disk.
    """

    frozen: int
    buffers: int
    trained: int
    copies: int
    cast: int
    merged: int
    gathered: int
    copies_on_host: bool
    copies_pinned: int
    decoder: int
    decoder_on_host: bool
    encoders: int
    encoded_alone: bool
    waiting: int
    embedding: int
    remembered: int | None


class FlowPolicy(nn.Module, ABC):
    """A flow-matching text-to-image model that predicts v = noise - x_0.

    Only what trains is a parameter of this module; the VAE and the text encoders stay outside the module tree, so that
    they reach neither checkpoints nor optimizers. Nothing is read from disk before `load`.
    """

    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass, and not kept."""

    @abstractmethod
    def load(self, shard: Shard | None = None) -> None:
        """Read the weights; raises `GuardlitError` on a folder that is not this model. A second call does nothing.

        Args:
            shard: to be called on the network before copies of its weights are made; None leaves it whole.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """What a checkpoint must agree on with this model: its class, sizes and adapter."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample's latents, (C, H, W)."""

    @abstractmethod
    def sigmas(self, num_steps: int) -> Tensor:
        """The model's own schedule of that many steps, from 1 down to 0, (T + 1,) float64."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """Make sure that the embeddings of these prompts are at hand.

        Only new prompts load the text encoders; then those of `ahead` are encoded too, so that they load rarely.
        """

    def encode_across_ranks(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """`encode` where all processes of a run call it at once, and may share the work; the prompts may differ."""
        self.encode(prompts, ahead)

    @abstractmethod
    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """Embeddings of P prompts on the model's device, leading dimension P."""

    @abstractmethod
    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """The predicted velocity, with classifier-free guidance above a scale of 1.

        Args:
            latents: x_t, (B, C, H, W) float32.
            sigma: t of each row, (B,).
            conditioning: embeddings, leading dimension B.
            guidance_scale: 1 asks the model once, without the empty prompt.

        Returns:
            (B, C, H, W) float32.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images of clean latents, (B, C, H, W) -> (B, 3, height, width) uint8."""

    @abstractmethod
    def using(self, weights: WeightSet) -> AbstractContextManager[None]:
        """Run the model with the old policy's or the reference's weights; without gradients, for those two."""

    @property
    def forward_dtype(self) -> torch.dtype | None:
        """The half precision that the network computes in whatever autocast says; None leaves it to autocast."""
        return None

    @property
    def mergeable(self) -> bool:
        """Whether what trains can be added to frozen weights: an adapter on layers that are not quantized."""
        return False

    def merged(self) -> AbstractContextManager[None]:
        """Run the model with its active adapter added to the weights: fewer operations, other rounding, no gradients.

        Within `using` it is that set's adapter. The sum is rounded to the precision that the weights are stored in;
        afterwards they are as before, bit for bit. A collective where the network is sharded.
        """
        return nullcontext()

    @abstractmethod
    def refresh_old(self) -> None:
        """Make the old policy a copy of the trained one: the start of a round."""

    @abstractmethod
    def old_state(self) -> dict[str, Tensor]:
        """The old policy's trainable weights by name, for a checkpoint in the middle of a round."""

    @abstractmethod
    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `old_state` gave."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the trained weights in the format that the model's own pipeline loads."""

    @abstractmethod
    def exported(self, folder: Path) -> AbstractContextManager[None]:
        """Run the model with a folder's weights: what `export` wrote, or a LoRA that its own pipeline loads.

        Raises:
            GuardlitError: neither of these, or of another model.
        """

    @abstractmethod
    def source(self) -> dict[str, str]:
        """What, beside trained weights and prompts, decides an image: the model's files and how they are used.

        It is known before `load`; raises `GuardlitError` where there is no such model.
        """

    @property
    def has_reference(self) -> bool:
        """Whether `using("reference")` works."""
        return True

    @property
    def host_copy(self) -> int:
        """Bytes of one further set of weights that rests in the host's memory and is brought in to be used."""
        return 0

    def skeleton(self, gradient_checkpointing: bool | None = None) -> Self:
        """This policy on torch's meta device: every tensor has a shape and no content, and no weight file is read.

        All that a round does with a policy works on it, so that a run can be measured before there is anything to run
        it with; `conditioning` gives embeddings of the right shape for any prompt.

        Args:
            gradient_checkpointing: in place of the policy's own setting.

        Raises:
            GuardlitError: configuration files that are not at hand, or a policy that has no skeleton.
        """
        raise GuardlitError(f"{type(self).__name__} has no skeleton to measure a run with")

    def footprint(self) -> Footprint:
        """What the policy keeps in memory; of a skeleton, or once it is loaded."""
        raise NotImplementedError
