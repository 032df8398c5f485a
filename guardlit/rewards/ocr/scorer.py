"""Whether an image shows the text that its prompt quotes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import torch

from guardlit.devices.cores import available_cores
from guardlit.rewards.base import Scorer
from guardlit.rewards.ocr.engine import Readers, engine_provenance, known_characters, missing_packages
from guardlit.rewards.ocr.text import accuracy, legible, quoted_texts, squeezed
from guardlit.rewards.outcome import first_error
from guardlit.types import RewardRequest, RewardResult


class OCR(Scorer):
    """Text accuracy in [0, 1], as Flow-GRPO (arXiv:2505.05470) defines it, read by PP-OCRv6 through rapidocr.

    1 where the quoted text of the prompt is part of what was read, otherwise 1 - min(d, n) / n with the Levenshtein
    distance d and n characters in the quoted text, and boxes are joined from top to bottom. White space and case are
    ignored, and characters that look the same are the same (kinds of quotes, dashes and accents; see
    `docs/ocr.md`). An image without text scores 0; one that could not be read is NaN and invalid.

    `details["exact"]` is 1 where only the quoted text was read. If it falls while the score stays high, the images fill
    with text.

    Args:
        targets: which quoted text counts: `first`, as published, or `all`: the mean accuracy over all of them, each by
            the box or the joined text that matches it best (our extension).
        workers: subprocesses that read, with one thread each; null for the machine's cores divided by its ranks.
        side: images with a shorter edge are enlarged to it before text detection, in pixels.
    """

    name = "ocr"
    background = True

    def __init__(self, targets: Literal["first", "all"] = "first", workers: int | None = None, side: int = 512) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers of the reward ocr is {workers}; it must be at least 1, or null")
        if side < 32:
            raise ValueError(f"side of the reward ocr is {side}; it must be at least 32 pixels")
        self.targets = targets
        self.workers = workers
        self.side = side
        self._engine: Mapping[str, str] = {}
        self._readers: Readers | None = None
        self._failures = 0

    @property
    def provenance(self) -> Mapping[str, str]:
        """Scorer, engine, models, options; `workers` is left out, since it cannot change a score."""
        return {"scorer": self.name, **self._engine, "targets": self.targets, "side": str(self.side)}

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:
        """Raise `ValueError` unless the prompt holds text in balanced quotes that the recognizer can read.

        Without the packages of `setup`, only the quotes are checked: `guardlit plan` needs no recognizer.
        """
        if missing_packages():
            quoted_texts(prompt)
        else:
            self._targets(prompt)

    def _targets(self, prompt: str) -> list[str]:
        """The quoted texts that count, without what the recognizer cannot read."""
        texts = quoted_texts(prompt)
        return [legible(text, known_characters()) for text in (texts[:1] if self.targets == "first" else texts)]

    def setup(self, device: torch.device) -> None:
        """Start the subprocesses and read a word in each; raises `GuardlitError` if one cannot."""
        self.close()
        self._engine = engine_provenance()
        readers = Readers(self.workers or _cores_of_this_rank(), self.side)
        try:
            readers.self_test()
        except BaseException:
            readers.close()
            raise
        self._readers = readers

    def score(self, request: RewardRequest) -> RewardResult:
        """Score B images of any size, (B,)."""
        if self._readers is None:
            raise RuntimeError("the reward ocr was not set up")
        targets = [self._targets(prompt) for prompt in request.prompts]
        outcomes = self._readers.read(list(request.images.permute(0, 2, 3, 1).cpu().numpy()))
        scores = [
            (float("nan"),) * 2 if o.value is None else self._rate(texts, o.value)
            for texts, o in zip(targets, outcomes, strict=True)
        ]
        self._failures += sum(outcome.error is not None for outcome in outcomes)
        values, exact = torch.tensor(scores).view(-1, 2).unbind(dim=1)
        return RewardResult.from_values(
            values, details={"exact": exact}, provenance=self.provenance, reason=first_error(outcomes)
        )

    def _rate(self, targets: list[str], boxes: list[str]) -> tuple[float, float]:
        """Accuracy, and 1 if nothing else was read."""
        joined = "".join(boxes)
        if self.targets == "first":
            value = accuracy(targets[0], joined)
        else:
            value = sum(max(accuracy(t, read) for read in (joined, *boxes)) for t in targets) / len(targets)
        nothing_else = len(squeezed(joined)) == sum(len(squeezed(target)) for target in targets)
        return value, float(value == 1 and nothing_else)

    def counters(self) -> Mapping[str, float]:
        """Since the last call: images that could not be read (`failures`), deaths of subprocesses (`deaths`)."""
        if self._readers is None:
            return {}
        counts = {"failures": float(self._failures), "deaths": float(self._readers.deaths)}
        self._failures = self._readers.deaths = 0
        return counts

    def close(self) -> None:
        """Stop the subprocesses."""
        if self._readers is not None:
            self._readers.close()
            self._readers = None


def _cores_of_this_rank() -> int:
    """Cores that this process may use, divided by the machine's ranks."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if distributed else 1
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", ranks)))
