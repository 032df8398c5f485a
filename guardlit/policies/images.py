"""What training on images needs of a model: an encoder, a cache for its latents, and how the model was trained."""

from __future__ import annotations

from torch import Tensor, nn

from guardlit.errors import GuardlitError
from guardlit.policies.folders.embeddings import EmbeddingCache


class ImagePolicy(nn.Module):
    """The part of a policy that a loss on images uses; a base class of `FlowPolicy`.

    A policy without an encoder trains all the same, but not with `model.data_loss`.
    """

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels, known before `load`; raises `GuardlitError` without an encoder."""
        raise self._no_encoder()

    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images, the inverse of `decode`.

        Args:
            images: (B, 3, height, width) uint8 on any device.

        Returns:
            Clean latents, (B, C, H, W) float32 on the policy's device.

        Raises:
            GuardlitError: the policy has no encoder.
        """
        raise self._no_encoder()

    def _no_encoder(self) -> GuardlitError:
        return GuardlitError(
            f"{type(self).__name__} has no image encoder (encode_images), which model.data_loss needs; set it to null"
        )

    def latent_cache(self) -> EmbeddingCache:
        """A cache of images' latents, which serves no other encoder and no other size; here in memory only."""
        return EmbeddingCache(type(self).__name__, None)

    def shifted(self, times: Tensor, num_steps: int) -> Tensor:
        """Times in (0, 1) as the model's schedule shifts them towards noise; here they stay as they are.

        Args:
            times: float64 of any shape, 1 is noise.
            num_steps: of the schedule, on which the shift of some models depends.
        """
        return times

    def unguided_scale(self, guidance_scale: float) -> float:
        """The scale for one forward pass without classifier-free guidance: 1.

        A network whose guidance is an input, distilled, has no such pass: it keeps the scale that it is trained at.
        """
        return 1.0
