"""Image statistics that reveal the drift of a policy without a reward model."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from guardlit_callbacks.bases.validation import ValidationCallback, log_validation
from guardlit_callbacks.distributed.gather import distinct
from guardlit_callbacks.tools.images import check_range, read_images
from guardlit_callbacks.tools.lightning import LightningModule, MisconfigurationException, Trainer, rank_zero_warn
from guardlit_callbacks.tools.outputs import read_column, read_value

_THUMBNAIL = 16


def _gray(images: Tensor) -> Tensor:
    """Luma (ITU-R BT.601) in [0, 1]: (B, 3, H, W) uint8 -> (B, H, W) float32."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    return torch.einsum("bchw,c->bhw", images.float() / 255.0, weights)


def edge_density(images: Tensor, threshold: float = 0.1) -> Tensor:
    """Fraction of pixels whose brightness differs from the right or lower neighbour's by more than `threshold`.

    Args:
        images: (B, 3, H, W) uint8.
        threshold: length of the forward-difference gradient, in units of the full brightness range.

    Returns:
        (B,) float32 in [0, 1].
    """
    gray = _gray(images)
    dx, dy = gray[:, :-1, 1:] - gray[:, :-1, :-1], gray[:, 1:, :-1] - gray[:, :-1, :-1]
    return (dx.square() + dy.square() > threshold**2).float().mean(dim=(1, 2))


def dark_share(images: Tensor, threshold: float = 0.2) -> Tensor:
    """Fraction of pixels darker than `threshold` of the full range; (B, 3, H, W) uint8 -> (B,) float32 in [0, 1]."""
    return (_gray(images) < threshold).float().mean(dim=(1, 2))


def gray_entropy(images: Tensor) -> Tensor:
    """Entropy of the 256 gray levels, in bits; (B, 3, H, W) uint8 -> (B,) float32 in [0, 8]."""
    levels = _gray(images).mul(255).round().long().flatten(1)
    counts = torch.zeros(len(levels), 256, device=levels.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=counts.dtype))
    nats: Tensor = torch.special.entr(counts / levels.shape[1]).sum(dim=1)
    return nats / math.log(2)


def spectral_peak(images: Tensor) -> Tensor:
    """Height of the strongest periodic pattern above the spectrum around it, in dB.

    The power spectrum of the gray image (Hann window), each frequency against the geometric mean of those of the same
    distance from the origin; the maximum over all but the lowest eighth of the frequencies. Plain noise and natural
    images give about 10 dB, a grid artifact tens of dB more, a uniform image 0.

    Args:
        images: (B, 3, H, W) uint8, H and W at least 16.

    Returns:
        (B,) float32, >= 0.
    """
    gray = _gray(images).double()
    height, width = gray.shape[1:]
    window = torch.outer(torch.hann_window(height), torch.hann_window(width)).to(gray)
    power = torch.fft.rfft2((gray - gray.mean(dim=(1, 2), keepdim=True)) * window).abs().square().flatten(1)
    decibel = 10.0 * torch.log10(power + 1e-6)  # a floor below the rounding to 8 bits: uniform stays 0
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]).flatten().to(gray)
    ring = (radius * min(height, width)).round().long()
    total = decibel.new_zeros(len(gray), int(ring.max()) + 1).index_add_(1, ring, decibel)
    mean = total / ring.bincount().clamp_min(1)
    return (decibel - mean[:, ring])[:, radius > 0.0625].amax(dim=1).float()


def saturation(images: Tensor) -> Tensor:
    """Mean saturation of the HSV model, 0 for gray; (B, 3, H, W) uint8 -> (B,) float32 in [0, 1]."""
    high, low = images.float().amax(dim=1), images.float().amin(dim=1)
    return ((high - low) / high.clamp_min(1.0)).mean(dim=(1, 2))


def group_diversity(images: Tensor, groups: Sequence[Hashable]) -> Tensor:
    """Mean root-mean-square difference between an image and the others of its group, as 16 x 16 thumbnails.

    Args:
        images: (B, 3, H, W) uint8.
        groups: B labels; images with equal labels form a group.

    Returns:
        (B,) float32 in [0, 1] of the full range; NaN for an image alone in its group.
    """
    thumbnails = functional.adaptive_avg_pool2d(images.float() / 255.0, _THUMBNAIL).flatten(1)
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    diversity = torch.full((len(images),), math.nan, device=images.device)
    for rows in members.values():
        if len(rows) > 1:
            distance = torch.cdist(thumbnails[rows], thumbnails[rows], compute_mode="donot_use_mm_for_euclid_dist")
            diversity[rows] = distance.sum(dim=1) / (len(rows) - 1) / math.sqrt(thumbnails.shape[1])
    return diversity


SENTINELS = {
    "edge_density": edge_density,
    "dark_share": dark_share,
    "grey_entropy": gray_entropy,
    "spectral_peak": spectral_peak,
    "saturation": saturation,
}


class _Batch(NamedTuple):
    """What is kept of B images: sentinels (B, 5), thumbnails (B, 3, 16, 16), labels and sample indices (B or none)."""

    values: Tensor
    thumbnails: Tensor
    groups: list[Hashable]
    indices: list[int]


class DriftSentinels(ValidationCallback[_Batch]):
    """Monitors simple statistics of the validation images, relative to the first validation.

    Reward hacking shows here before the gold scores fall. A text reward, for example, wipes the background: the
    fraction of dark pixels doubles while edges and entropy halve. The baseline is the first validation that the
    callback sees; `trainer.validate(...)` before `fit`, or `Trainer(num_sanity_val_steps=-1)`, makes it step 0. It is
    kept in checkpoints. The images of all ranks count.

    Logged once per validation, the mean over all images:

    | key | unit |
    |---|---|
    | `drift/edge_density` | fraction of pixels, 0 to 1 |
    | `drift/dark_share` | fraction of pixels, 0 to 1 |
    | `drift/grey_entropy` | bits, 0 to 8 |
    | `drift/spectral_peak` | dB |
    | `drift/saturation` | 0 to 1 |
    | `drift/diversity` | RMS pixel difference within a group, fraction of the full range; with `groups` only |
    | `drift/NAME_ratio` | each of these over its value in the first validation; not logged where that is 0 |

    Example:
        ```python
        class Module(LightningModule):
            def validation_step(self, prompts, batch_idx):
                return {"images": self.sample(prompts), "prompts": prompts}  # (B, 3, H, W) uint8, B texts
        trainer = Trainer(callbacks=[DriftSentinels()])
        trainer.validate(module)  # the baseline
        trainer.fit(module)
        ```

    Args:
        images: key of the images in what `validation_step` returns, (B, 3, H, W) uint8, or floats in `value_range`.
        groups: key of B labels (texts or numbers); equal labels form a group. None for no diversity.
        index: key of each sample's index in the validation set, (B,); a sample that a distributed sampler repeats then
            counts once. None if there are no repeats.
        value_range: of float images, [0, 1] or [-1, 1].
        dataloader: index of the validation dataloader to read, where there are several.

    Raises:
        ValueError: another `value_range`.
        MisconfigurationException: the module has no `validation_step`; a key is missing in what it returned, or holds
            something else; several validation dataloaders without `dataloader`.
    """

    def __init__(
        self,
        images: str = "images",
        groups: str | None = "prompts",
        index: str | None = None,
        value_range: tuple[float, float] = (0.0, 1.0),
        dataloader: int | None = None,
    ) -> None:
        super().__init__(dataloader)
        self.images, self.groups, self.index = images, groups, index
        self.value_range = check_range(value_range, self)
        self._baseline: dict[str, float] = {}

    def collect(self, outputs: Any) -> list[_Batch]:
        """Reduces the batch to a few numbers and a thumbnail per image."""
        images = read_images(outputs, self.images, self, self.value_range)
        groups: list[Hashable] = []
        if self.groups is not None:
            labels = read_value(outputs, self.groups, self, "groups")
            groups = labels.tolist() if isinstance(labels, Tensor) else list(labels)
            if len(groups) != len(images):
                raise MisconfigurationException(
                    f"DriftSentinels: {len(groups)} labels under {self.groups!r} for {len(images)} images"
                )
        values = torch.stack([sentinel(images) for sentinel in SENTINELS.values()], dim=1)
        thumbnails = functional.adaptive_avg_pool2d(images.float(), _THUMBNAIL).round().to(torch.uint8)
        index = [] if self.index is None else read_column(outputs, self.index, self, "index", len(images)).tolist()
        return [_Batch(values.cpu(), thumbnails.cpu(), groups, index)]

    def report(self, trainer: Trainer, pl_module: LightningModule, ranks: Sequence[Sequence[_Batch]]) -> None:
        """Logs the means over all images, and their ratios to the baseline."""
        means = self._means([batch for rank in ranks for batch in rank])
        if not self._baseline:
            self._baseline = means
            if trainer.global_step > 0:
                rank_zero_warn(f"DriftSentinels: the baseline is step {trainer.global_step}; validate before training")
        ratios = {f"{k}_ratio": v / self._baseline[k] for k, v in means.items() if self._baseline.get(k, 0.0) > 0}
        log_validation(trainer, pl_module, {f"drift/{key}": value for key, value in {**means, **ratios}.items()})

    def _means(self, batches: Sequence[_Batch]) -> dict[str, float]:
        values, thumbnails = torch.cat([b.values for b in batches]), torch.cat([b.thumbnails for b in batches])
        groups = [group for batch in batches for group in batch.groups]
        kept = list(range(len(values)))
        if self.index is not None:
            kept = distinct([index for batch in batches for index in batch.indices])
        means = dict(zip(SENTINELS, values[kept].mean(dim=0).tolist(), strict=True))
        if self.groups is not None:
            diversity = group_diversity(thumbnails[kept], [groups[i] for i in kept]).nanmean().item()
            if not math.isnan(diversity):
                means["diversity"] = diversity
        return means

    def state_dict(self) -> dict[str, Any]:
        """The baseline."""
        return {"baseline": self._baseline}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the baseline."""
        self._baseline = dict(state_dict["baseline"])
