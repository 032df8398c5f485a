"""The interface of a model: embeddings, a schedule, velocities, images, and the weight sets."""

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
from guardlit.policies.exports.facts import ExportFacts, ExportFormat
from guardlit.policies.images import ImagePolicy
from guardlit.types import Conditioning

WeightSet = Literal["policy", "old", "reference", "base"]
"""`base` is the base model; `reference` is the base until it is renewed, and what a KL penalty measures from."""
Shard = Callable[[nn.Module, Sequence[nn.Module]], None]
"""Shards a network over ranks, in place: takes the network, and its blocks, which are gathered one at a time."""


@dataclass(frozen=True)
class Footprint:
    """Memory that a policy takes, in bytes.

    Attributes:
        frozen: weights of the network that do not train.
        buffers: of the network; not sharded.
        trained: weights that train.
        copies: the old policy, the reference and the base, where they are copies of weights.
        cast: half-precision copies of adapters, kept from one update to the next.
        merged: copies of the weights that an adapter is merged into.
        gathered: weights that FSDP2 gathers on a rank at once: those outside the blocks, and the two largest blocks,
            since the next block is prefetched.
        copies_on_host: whether the copies are in host memory, not on the weights' device.
        copies_pinned: host memory of the copies if there is a GPU, where they are pinned.
        decoder: the VAE.
        decoder_on_host: whether the VAE is in host memory while it does not decode.
        encoders: the text encoders, in memory only while new prompts are encoded.
        encoded_alone: whether the frozen weights are in host memory meanwhile.
        host_resident: text encoders, and a VAE's float32 original, that always stay in host memory.
        embedding: the cached embeddings of one prompt.
        remembered: largest number of prompts with embeddings in memory, when all are on disk; None when all are in
            memory and none on disk.
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
    host_resident: int
    embedding: int
    remembered: int | None


class FlowPolicy(ImagePolicy, ABC):
    """A flow-matching text-to-image model that predicts v = noise - x_0.

    The VAE and the text encoders are outside the module tree, so checkpoints and optimizers do not hold them. Nothing
    is read from disk before `load`.
    """

    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass instead of saved."""
    renews: bool = False
    """Whether the reference may be renewed; see `allow_renewal`."""
    sizes_of: str | None = None
    """The hub id of a skeleton that is built from bundled sizes, since the model's own files are not here."""

    @abstractmethod
    def load(self, shard: Shard | None = None) -> None:
        """Read the weights; raises `GuardlitError` on a folder of another model. A second call does nothing.

        Args:
            shard: called on the network before copies of its weights are made; None leaves it unsharded.
        """

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """The model's class, sizes and adapter: a checkpoint can be resumed only with equal ones."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one image's latents, (C, H, W)."""

    @abstractmethod
    def sigmas(self, num_steps: int) -> Tensor:
        """The model's own schedule of `num_steps` steps, from 1 down to 0, (T + 1,) float64."""

    @abstractmethod
    def encode(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """Encode and cache prompts.

        Args:
            prompts: encoded if they are new.
            ahead: prompts of later rounds. They are encoded only if one of `prompts` is new, so that the text encoders
                load rarely.
        """

    def encode_across_ranks(self, prompts: Sequence[str], ahead: Sequence[str] = ()) -> None:
        """`encode`, the work split over the ranks. Collective: every rank must call it; the prompts may differ."""
        self.encode(prompts, ahead)

    @abstractmethod
    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """Embeddings of P prompts on the model's device, leading dimension P."""

    @abstractmethod
    def velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float) -> Tensor:
        """The predicted velocity, with guidance above a scale of 1.

        Args:
            latents: x_t, (B, C, H, W) float32.
            sigma: t of each row, (B,).
            conditioning: embeddings, leading dimension B.
            guidance_scale: 1 is one forward pass, without the empty prompt.

        Returns:
            (B, C, H, W) float32.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode clean latents, (B, C, H, W) -> images (B, 3, height, width) uint8."""

    @abstractmethod
    def using(self, weights: WeightSet) -> AbstractContextManager[None]:
        """Use a weight set within the context; gradients are disabled for all but the policy.

        Within `merged` the other sets are used unmerged.
        """

    @property
    def forward_dtype(self) -> torch.dtype | None:
        """The half precision that the network computes in, autocast or not; None leaves it to autocast."""
        return None

    @property
    def mergeable(self) -> bool:
        """Whether the trained adapter can be merged into the frozen weights, which quantized ones do not allow."""
        return False

    def merged(self) -> AbstractContextManager[None]:
        """Merge the active adapter into the weights within the context: fewer operations, other rounding, no gradients.

        Within `using` it is that set's adapter. The sum is rounded to the dtype of the weights, which are restored bit
        for bit. Collective if the network is sharded.
        """
        return nullcontext()

    @abstractmethod
    def refresh_old(self) -> None:
        """Copy the trained weights to the old policy: the start of a round."""

    @abstractmethod
    def old_state(self) -> dict[str, Tensor]:
        """The old policy's weights by name, for a checkpoint within a round. Collective: every rank must call it."""

    @abstractmethod
    def load_old_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `old_state` returned."""

    def allow_renewal(self) -> None:
        """Make `load` keep room for a renewed reference; raises `GuardlitError` if the policy cannot renew it."""
        raise GuardlitError(
            f"{type(self).__name__} cannot renew its reference: leave model.kl.renew_every and renew_above out"
        )

    def renew_reference(self) -> None:
        """Copy the trained weights to the reference, which until then is the base."""
        raise NotImplementedError

    def reference_state(self) -> dict[str, Tensor]:
        """A renewed reference's weights by name, for a checkpoint; empty while it is the base. Collective."""
        return {}

    def load_reference_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `reference_state` returned; an empty state makes the reference the base again."""
        raise NotImplementedError

    def check_export(self, to: ExportFormat, merged: bool) -> None:
        """Raise `GuardlitError` for a format that this policy does not write; it works before `load`."""
        if to != "diffusers" or merged:
            raise GuardlitError(f"{type(self).__name__} exports its own format only: leave --to and --merged out")

    @abstractmethod
    def export(self, folder: Path, to: ExportFormat = "diffusers", merged: bool = False) -> None:
        """Write the trained weights. Collective: every rank must call it; the first one writes.

        Args:
            folder: made if need be.
            to: who reads them.
            merged: the complete weights with the adapter added, in place of the adapter.

        Raises:
            GuardlitError: the policy does not write this format.
        """

    def export_facts(
        self, to: ExportFormat, merged: bool, steps: int, scale: float, base_steps: int = 0
    ) -> ExportFacts | None:
        """What a model card says of the exported weights; None leaves it out.

        Args:
            to: as for `export`.
            merged: as for `export`.
            steps: sampling steps to recommend.
            scale: guidance scale to recommend.
            base_steps: the last of these steps that the base model takes.
        """
        return None

    @abstractmethod
    def exported(self, folder: Path) -> AbstractContextManager[None]:
        """Use exported weights within the context: a folder that `export` wrote, or a LoRA of any trainer.

        Raises:
            GuardlitError: it is neither, or holds what cannot be applied exactly.
        """

    def base(self) -> AbstractContextManager[None]:
        """Use the base model within the context, of a policy that has not trained: without the LoRA it starts from."""
        return nullcontext()

    @abstractmethod
    def source(self) -> dict[str, str]:
        """The model's files and settings, which with trained weights and prompts determine an image.

        It works before `load`; raises `GuardlitError` if there is no such model.
        """

    @property
    def has_reference(self) -> bool:
        """Whether `using("reference")` and `using("base")` work."""
        return True

    @property
    def host_copy(self) -> int:
        """Bytes of one weight set that is stored in host memory and moved to the device when used."""
        return 0

    def skeleton(self, gradient_checkpointing: bool | None = None) -> Self:
        """This policy on torch's meta device: tensors have shapes and no content, and no weight file is read.

        Everything that a round does with a policy works on it, so a run can be measured without weights or a device;
        `conditioning` gives embeddings of the right shape for any prompt.

        Args:
            gradient_checkpointing: replaces the policy's setting; None keeps it.

        Raises:
            GuardlitError: configuration files are missing, or the policy has no skeleton.
        """
        raise GuardlitError(f"{type(self).__name__} has no skeleton to measure a run with")

    def footprint(self) -> Footprint:
        """Memory that the policy takes; of a skeleton, or after `load`."""
        raise NotImplementedError
