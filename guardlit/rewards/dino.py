"""DINO (arXiv:2304.07193, arXiv:2508.10104): features of an image that show what is in it, and know no prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from guardlit.devices.dtypes import DTYPES
from guardlit.errors import GuardlitError
from guardlit.rewards.files import check_report, expanded, file_errors, folder_sha256
from guardlit.rewards.network import NetworkScorer, Placement
from guardlit.types import RewardRequest, RewardResult

KINDS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "dinov3_convnext")
"""`model_type` in the config.json of the networks that can be loaded."""


class DINO(NetworkScorer):
    """Features of a DINOv2 or DINOv3 network, for `model.advantage.diversity`: a term of weight 0.

    The score says how much the patches of an image differ, in [0, 1]: 1 - the length of the mean of their unit vectors.
    It is there to be watched, not trained on.

    Args:
        model: Hugging Face id or local folder, such as `facebook/dinov3-vitl16-pretrain-lvd1689m`.
        pooling: which output tokens are the features: the `class` token, or the mean of the `patches`, as in GARDO.
        placement: device, precision and batch size of the network.
    """

    embeds_images = True

    def __init__(
        self,
        model: str = "facebook/dinov2-base",
        pooling: Literal["class", "patches"] = "class",
        placement: Placement = Placement(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(placement)
        self.model, self.pooling = expanded(model), pooling

    @property
    def provenance(self) -> Mapping[str, str]:
        """Scorer, files, pooling, precision."""
        return {**super().provenance, "pooling": self.pooling}

    def load(self) -> tuple[nn.Module, Mapping[str, str]]:
        """Load the network and its image processor; the file must hold exactly these weights."""
        from transformers import AutoImageProcessor, AutoModel

        with file_errors(self.model, "DINO folder"):
            kind = self._config().model_type
            if kind not in KINDS:
                raise GuardlitError(
                    f"{self.model}: not a DINO model, its config.json says model_type {kind!r}; one of "
                    f"{', '.join(KINDS)} is needed here"
                )
            network, report = AutoModel.from_pretrained(
                self.model,
                dtype=torch.float32,
                weights_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            check_report(self.model, report)
            self._processor: Any = AutoImageProcessor.from_pretrained(self.model)
            digest = folder_sha256(self.model)
        return network, {"model": self.model, "weights_sha256": digest}

    def weight_bytes(self) -> int | None:
        """Of the network, by the model's config.json; None where it is not on this machine."""
        from transformers import AutoModel

        if self.placement.device not in ("same", "cuda"):
            return 0
        try:
            with torch.device("meta"):
                network = AutoModel.from_config(self._config(local_files_only=True))
        except (OSError, ValueError):
            return None
        return int(sum(p.numel() for p in network.parameters()) * DTYPES[self.placement.dtype].itemsize)

    def compute(self, request: RewardRequest) -> RewardResult:
        """Embed B images: values (B,) say how much the patches of each differ."""
        rows = self.in_batches(request.images, self._embed)
        return self.result(rows[:, 0], features=rows[:, 1:])

    def _config(self, **options: Any) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.model, **options)

    def _embed(self, images: Tensor) -> Tensor:
        """Score and features of each image, (B, 1 + F) float32."""
        network: Any = self.network
        seen = self._processor(images=images.to(self.device), return_tensors="pt")["pixel_values"]
        tokens: Tensor = network(pixel_values=seen.to(network.dtype)).last_hidden_state.float()
        patches = tokens[:, 1 + getattr(network.config, "num_register_tokens", 0) :]
        differ = 1 - torch.nn.functional.normalize(patches, dim=2).mean(dim=1).norm(dim=1, keepdim=True)
        return torch.cat([differ, tokens[:, 0] if self.pooling == "class" else patches.mean(dim=1)], dim=1)
