"""GenEval's object detector: Mask2Former with the input and output processing of mmdet 2, as in the benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

from guardlit.errors import GuardlitError
from guardlit.rewards.files import check_report
from guardlit.rewards.geneval.prompt import CLASSES
from guardlit.rewards.geneval.resize import resize_bilinear

_SHORT, _LONG, _MULTIPLE = 800, 1333, 32  # pixels of the edges after the resize, and what both are padded to
_MEAN, _STD, _GRAY = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 128  # RGB levels; gray is the padding
_MOST = 100  # instances an image


@dataclass(frozen=True)
class Instances:
    """K objects in one image, the most confident first.

    Attributes:
        labels: index in `CLASSES`, (K,) int64.
        scores: in [0, 1], (K,) float32.
        boxes: left, top, right, bottom; right and bottom are the first pixels outside, (K, 4) int64.
        masks: their pixels, (K, height, width) bool.
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor
    masks: Tensor


@dataclass(frozen=True)
class View:
    """Sizes of an image on its way to the network.

    Attributes:
        original: height and width of the image.
        resized: the same after the resize.
        padded: the same of the network's input; the image is at its top left.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(cls, height: int, width: int) -> View:
        """The largest size of the same shape within 1333 x 800 (or 800 x 1333), padded to multiples of 32."""
        scale = min(_LONG / max(height, width), _SHORT / min(height, width))
        resized = int(height * scale + 0.5), int(width * scale + 0.5)
        padded = -(-resized[0] // _MULTIPLE) * _MULTIPLE, -(-resized[1] // _MULTIPLE) * _MULTIPLE
        return cls((height, width), resized, padded)


def load_detector(name: str, source: str | None = None) -> Any:
    """A `transformers.Mask2FormerForUniversalSegmentation` in float32, with exactly its weights.

    Args:
        name: Hugging Face id or local folder.
        source: its name in messages, if not `name`.

    Raises:
        GuardlitError: another kind of model, other classes than COCO's 80, or weights that are missing, unexpected or
            of another shape.
    """
    from transformers import Mask2FormerForUniversalSegmentation, PretrainedConfig

    source = source or name
    config = PretrainedConfig.get_config_dict(name)[0]
    if config.get("model_type") != "mask2former":
        raise GuardlitError(
            f"{source}: its config.json says model_type {config.get('model_type')!r}; GenEval needs a 'mask2former' "
            f"for COCO's instances, such as `guardlit convert mask2former` writes"
        )
    model, report = Mask2FormerForUniversalSegmentation.from_pretrained(
        name, dtype=torch.float32, weights_only=True, ignore_mismatched_sizes=True, output_loading_info=True
    )
    if model.config.num_labels != len(CLASSES):
        raise GuardlitError(
            f"{source}: it knows {model.config.num_labels} classes; GenEval needs the {len(CLASSES)} of COCO's "
            f"instances (not the panoptic ones), in COCO's order"
        )
    missing = {key for key in report["missing_keys"] if not _is_idle(key)}
    unexpected = {key for key in report["unexpected_keys"] if not key.endswith("relative_position_index")}
    check_report(source, {**report, "missing_keys": missing, "unexpected_keys": unexpected})
    return model


def _is_idle(key: str) -> bool:
    """Whether detections do not depend on a weight: of the loss, and of an unused norm after the last stage."""
    return key == "criterion.empty_weight" or ".swin.layernorm." in key


def prepare(images: Tensor, view: View) -> Tensor:
    """Input of the network, (B, 3, *view.padded) float32.

    Resized as OpenCV does it, padded with gray, then normalized.

    Args:
        images: (B, 3, *view.original) uint8, RGB.
        view: where they go.
    """
    pixels = resize_bilinear(images, view.resized).float()
    bottom, right = (padded - size for padded, size in zip(view.padded, view.resized, strict=True))
    pixels = F.pad(pixels, (0, right, 0, bottom), value=_GRAY)
    mean, std = (pixels.new_tensor(values).view(-1, 1, 1) for values in (_MEAN, _STD))
    return (pixels - mean) / std


def find(classes: Tensor, masks: Tensor, view: View, above: float) -> Instances:
    """Instances in the network's output for one image, by mmdet's formula.

    Of all pairs of a query and a class the 100 most probable are instances. Their pixels are those where the query's
    mask is above 0, their score is the class's probability times the mean probability of these pixels.

    Args:
        classes: logits by query, the last one for no object, (Q, 81).
        masks: logits by query, (Q, h, w) at any scale of the padded image.
        view: sizes of the image on its way to the network.
        above: instances with a score up to this are left out; at least 0.

    Raises:
        FloatingPointError: logits that are not finite.
    """
    from torchvision.ops import masks_to_boxes

    if not (torch.isfinite(classes).all() and torch.isfinite(masks).all()):
        raise FloatingPointError("the detector's output is not finite")
    probabilities = classes.float().softmax(dim=-1)[:, :-1].flatten()
    best, pairs = probabilities.topk(min(_MOST, len(probabilities)))
    best, pairs = best[best > above], pairs[best > above]  # the masks can only lower a score
    known = classes.shape[-1] - 1
    queries, labels = pairs // known, pairs % known
    grown = _resize(masks[queries].float(), view.padded)[:, : view.resized[0], : view.resized[1]]
    logits = _resize(grown, view.original)
    inside = logits > 0
    scores = best * (logits.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > above]
    boxes = masks_to_boxes(inside[order]).long() + torch.tensor([0, 0, 1, 1], device=masks.device)
    return Instances(labels[order], scores[order], boxes, inside[order])


def _resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of (K, h, w); K may be 0."""
    if not len(masks):
        return masks.new_zeros(0, *size)
    return F.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
