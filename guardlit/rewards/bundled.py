"""Scorers of the tiny worlds: they read a bundled safetensors file, or compare the images of a prompt."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from guardlit.assets import resolve
from guardlit.errors import GuardlitError
from guardlit.files import sha256
from guardlit.rewards.base import Scorer
from guardlit.types import RewardRequest, RewardResult

_Network = TypeVar("_Network", bound=nn.Module)


class Bundled(Scorer):
    """A scorer that reads one safetensors file.

    Args:
        path: folder with the scorer's safetensors file, or a `guardlit://` name.
    """

    file: ClassVar[str]

    def __init__(self, path: str) -> None:
        self.path = path
        self._sha256 = ""

    @property
    def provenance(self) -> Mapping[str, str]:
        """Scorer and file."""
        return {"scorer": self.name, "weights": self.file, "weights_sha256": self._sha256}

    def weight_bytes(self) -> int:
        """The file's size."""
        return (Path(resolve(self.path)) / self.file).stat().st_size

    def _read(self) -> tuple[Path, dict[str, Tensor]]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = Path(resolve(self.path)) / self.file
        try:
            tensors = load_file(file)
            self._sha256 = sha256(file)
        except (OSError, SafetensorError) as error:
            raise GuardlitError(f"{file}: cannot be read as a safetensors file ({error})") from error
        return file, tensors


def frozen(network: type[_Network], tensors: Mapping[str, Tensor], file: Path, device: torch.device) -> _Network:
    """A network with these weights on a device; raises `GuardlitError` when they are another network's."""
    with torch.device("meta"):  # no weights are initialized, so that the global random state stays as it is
        net = network()
    try:
        net.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as error:
        raise GuardlitError(f"{file}: these are not the weights of {network.__name__}") from error
    return net.to(device).eval().requires_grad_(False)


class Diversity(Scorer):
    """Mean distance of an image to the other images of its prompt in the request; higher is more diverse.

    Unit: root mean square difference of pixel values in [0, 1]. The score of a prompt's only image is invalid.
    """

    compares_images = True

    def setup(self, device: torch.device) -> None:
        """Nothing to load."""
        self._device = device

    @abstractmethod
    def pixels(self, images: Tensor) -> Tensor:
        """What is compared: images (B, 3, H, W) uint8 -> (B, C, height, width) float32 in [0, 1]."""

    @torch.no_grad()
    def score(self, request: RewardRequest) -> RewardResult:
        """Score B images: values (B,) are mean distances, NaN where a prompt has one image."""
        pixels = self.pixels(request.images.to(self._device))
        values = torch.full((len(request),), torch.nan, device=self._device)
        for _, rows in rows_of_prompts(request, self._device):
            if len(rows) > 1:
                values[rows] = rms_distances(pixels[rows], pixels[rows]).sum(dim=1) / (len(rows) - 1)
        return self.result(values)


def rows_of_prompts(request: RewardRequest, device: torch.device) -> Iterator[tuple[int, Tensor]]:
    """For each prompt its first row and all its rows in the request."""
    for prompt in dict.fromkeys(request.prompts):
        rows = [row for row, other in enumerate(request.prompts) if other == prompt]
        yield rows[0], torch.tensor(rows, device=device)


def rms_distances(a: Tensor, b: Tensor) -> Tensor:
    """Root mean square pixel difference of each pair: (A, C, H, W) and (B, C, H, W) -> (A, B)."""
    pixels = a[0].numel()
    # sums of differences: the rounding of the faster matrix product gives equal images a distance
    exact = "donot_use_mm_for_euclid_dist"
    distances: Tensor = torch.cdist(a.flatten(1), b.flatten(1), compute_mode=exact)
    return distances / math.sqrt(pixels)
