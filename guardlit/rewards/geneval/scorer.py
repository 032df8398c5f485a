"""GenEval (arXiv:2310.11513): whether the image shows the objects of its prompt, in number, color and position."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from guardlit.errors import GuardlitError
from guardlit.rewards.clip.scorer import ClipScorer
from guardlit.rewards.files import expanded, file_errors, folder_sha256
from guardlit.rewards.geneval.colors import color_vectors, crops, nearest, sentences
from guardlit.rewards.geneval.detector import Instances, View, find, load_detector, prepare
from guardlit.rewards.geneval.prompt import CLASSES, MOST_OBJECTS, Clause, Wanted, read_metadata
from guardlit.rewards.geneval.rules import Found, Verdict, apply_rules
from guardlit.rewards.network import Placement
from guardlit.types import RewardRequest, RewardResult

Mode = Literal["official", "strict", "flow_grpo"]

_MODES: tuple[Mode, ...] = ("official", "strict", "flow_grpo")
_LEAST, _LEAST_COUNTING = 0.3, 0.9  # scores above which an instance counts


class GenEval(ClipScorer):
    """Whether an image shows what the metadata of its prompt ask for.

    A prompt needs the metadata of GenEval's files: `tag`, `include`, `exclude`. In each mode all three scores are in
    `RewardResult.details`, and in the log of a run whose only reward this is.

    Args:
        detector: folder or Hugging Face id of a Mask2Former for COCO's instances: the official checkpoint, converted by
            `guardlit convert mask2former`. (`facebook/mask2former-swin-small-coco-instance` has the same architecture,
            but other weights: its scores are not the benchmark's.)
        mode: `official`, the benchmark's 0 or 1; `strict`, 0 or 1 with exactly as many objects as asked for;
            `flow_grpo`, the reward that Flow-GRPO trains on, at most 1 and unbounded below.
        clip: folder or Hugging Face id of CLIP ViT-L/14, which names the colors.
        swap_channels: swap red and blue in the detector's input, as the public reward server of Flow-GRPO does; only to
            reproduce its rewards.
        placement: device and batch size of both networks; they need float32, because 16 bits move the positions at
            which the detector samples its features by half a pixel.

    Raises:
        ValueError: an unknown mode, or another precision.
    """

    logged = _MODES
    embeds_images = False  # its CLIP sees objects alone
    distinguishes = False  # two images without any of the requested objects get the same score

    def __init__(
        self,
        detector: str,
        mode: Mode = "official",
        clip: str = "openai/clip-vit-large-patch14",
        swap_channels: bool = False,
        placement: Placement = Placement(batch_size=8),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(clip, placement=placement)
        if mode not in _MODES:
            raise ValueError(f"mode of GenEval is {mode!r}; it is one of {', '.join(_MODES)}")
        if placement.dtype != "fp32":
            raise ValueError(
                f"placement.dtype of GenEval is {placement.dtype}; it must be fp32, as the detector's positions need it"
            )
        self.detector, self.mode, self.swap_channels = expanded(detector), mode, swap_channels
        self._vectors: dict[str, Tensor] = {}

    @property
    def provenance(self) -> Mapping[str, str]:
        """Scorer, mode, both networks' files, precision."""
        return {**super().provenance, "mode": self.mode, "swap_channels": str(self.swap_channels)}

    def task(self, metadata: Mapping[str, object]) -> str:
        """The task that the prompt names: the benchmark's score is the mean over its six tasks."""
        return str(metadata["tag"])

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:
        """Raise `ValueError` for metadata that are missing or could not be scored."""
        read_metadata(metadata)

    def weight_bytes(self) -> None:
        """Not known: there is a detector in addition to the CLIP model."""

    def load(self) -> tuple[nn.Module, Mapping[str, str]]:
        """Load detector and CLIP; the files must hold exactly these weights."""
        with file_errors(self.detector, "Mask2Former folder"):
            detector, digest = load_detector(self.detector), folder_sha256(self.detector)
        clip, files = super().load()
        self._vectors.clear()
        named = {"clip": files["model"], "clip_sha256": files["weights_sha256"]}
        return nn.ModuleDict({"detector": detector, "clip": clip}), {
            "detector": self.detector,
            "detector_sha256": digest,
            **named,
        }

    @property
    def clip(self) -> Any:
        """The CLIP model, on the device of the current request."""
        return self.network["clip"]  # type: ignore[index]

    def compute(self, request: RewardRequest) -> RewardResult:
        """Score B images, (B,)."""
        try:
            wanted = [read_metadata(metadata) for metadata in request.metadata]
        except ValueError as error:  # of an unchecked prompt
            raise GuardlitError(str(error)) from error
        verdicts: list[Verdict | None] = []
        for batch in self.placement.batches(len(request)):
            verdicts += self._verdicts(request.images[batch], wanted[batch])
        columns = {
            mode: torch.tensor([torch.nan if v is None else float(getattr(v, mode)) for v in verdicts])
            for mode in _MODES
        }
        return self.result(columns[self.mode], **columns)

    def _verdicts(self, images: Tensor, wanted: list[Wanted]) -> list[Verdict | None]:
        view = View.of(*images.shape[-2:])
        detector: Any = self.network["detector"]  # type: ignore[index]
        shown = images.to(self.device)
        pixels = prepare(shown.flip(1) if self.swap_channels else shown, view).to(detector.dtype)
        said = detector(pixel_values=pixels, output_auxiliary_logits=False)
        outputs = zip(images, said.class_queries_logits, said.masks_queries_logits, wanted, strict=True)
        return [self._verdict(image, classes, masks, asked, view) for image, classes, masks, asked in outputs]

    def _verdict(self, image: Tensor, classes: Tensor, masks: Tensor, wanted: Wanted, view: View) -> Verdict | None:
        """Scores of one image; None where the output of a network is not finite."""
        least = _LEAST_COUNTING if wanted.tag == "counting" else _LEAST
        try:
            instances = find(classes, masks, view, least)
            names = dict.fromkeys(clause.name for clause in (*wanted.include, *wanted.exclude))
            return apply_rules({name: self._objects(image, instances, name, wanted.include) for name in names}, wanted)
        except FloatingPointError:
            return None

    def _objects(self, image: Tensor, instances: Instances, name: str, clauses: tuple[Clause, ...]) -> list[Found]:
        """The objects of one class, the most confident first, with colors where a clause needs them."""
        chosen = (instances.labels == CLASSES.index(name)).nonzero()[:MOST_OBJECTS, 0]
        boxes = instances.boxes[chosen]
        found = [Found(box) for box in boxes.tolist()]
        counts = (c.count for c in clauses if c.name == name and c.color is not None and c.count <= len(found))
        if most := max(counts, default=0):
            colors = self._colors(image, boxes[:most], instances.masks[chosen[:most]], name)
            found[:most] = [dataclasses.replace(f, color=c) for f, c in zip(found[:most], colors, strict=True)]
        return found

    def _colors(self, image: Tensor, boxes: Tensor, masks: Tensor, name: str) -> list[str]:
        if name not in self._vectors:
            self._vectors[name] = color_vectors(self.in_batches(sentences(name), self._embed_texts))
        seen = crops(image, boxes, masks, self._preprocess)
        return nearest(self.in_batches(seen, self._embed_pixels), self._vectors[name])

    def _embed_pixels(self, pixels: Tensor) -> Tensor:
        clip = self.clip
        embedding: Tensor = clip.get_image_features(pixel_values=pixels.to(self.device, clip.dtype)).pooler_output
        return embedding
