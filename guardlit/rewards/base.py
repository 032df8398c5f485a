"""What scores images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.rewards.returned import as_result, numbers, raised
from guardlit.types import Prompt, RewardRequest, RewardResult


class Scorer(ABC):
    """Scores images: a proxy reward when trained on, a gold score when only watched.

    A subclass writes `setup` and `score`; everything else has a default. A scorer is not an `nn.Module`: it must stay
    out of checkpoints, optimizers, EMA and `.train()`. Weights load in `setup`, never in `__init__` or at import, so
    that a configuration parses in milliseconds. Weights in a sum, normalizers and terms belong to a `Reward`.
    """

    name: str = ""
    """Column name in logs and tables; the class name in lower case unless set."""

    background: bool = False
    """Whether `score` may run in a thread while the policy draws the next images: true where it waits for a server or
    for subprocesses, and does not compute with torch in this process."""

    distinguishes: bool = False
    """Whether two very different images never get the same score, as with the continuous output of a network; the
    start-up test then requires it. False for counts and fractions, where both may be 0."""

    compares_images: bool = False
    """Whether an image's score depends on the other images of its prompt: they must be in one request then."""

    embeds_images: bool = False
    """Whether a result has `features`: an image network's embeddings, for `model.advantage.diversity`."""

    logged: tuple[str, ...] = ()
    """Names in `RewardResult.details` that a run logs next to the score, where this scorer is its only reward."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.__dict__.get("name"):
            cls.name = cls.__name__.lower()

    @property
    def provenance(self) -> Mapping[str, str]:
        """What determines the values: scorer, weights with their SHA-256, options. Complete after `setup`."""
        return {"scorer": self.name}

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:  # noqa: B027 - optional hook
        """Raise `ValueError` when this prompt can never be scored (no quoted text, no metadata, ...)."""

    def task(self, metadata: Mapping[str, object]) -> str | None:
        """The task of a prompt, for a benchmark whose score is the mean over tasks.

        None for all prompts, the default: the score is the mean over prompts.
        """
        return None

    def weight_bytes(self) -> int | None:
        """Bytes of weights that `setup` loads to the policy's device, without loading them; None if not known."""
        return 0 if self.background else None

    @abstractmethod
    def setup(self, device: torch.device) -> None:
        """Load weights to a device. Called once before the first score; raises `GuardlitError` on bad files."""

    @abstractmethod
    def score(self, request: RewardRequest) -> RewardResult:
        """Score B images: values (B,) raw, in the scorer's own unit. Never touches the global random state."""

    def attempt(self, request: RewardRequest, name: str = "", strict: bool = True) -> RewardResult:
        """`score`, where an exception becomes B failed values with a reason.

        Args:
            request: B images.
            name: of this scorer in the reason; `self.name` if left out.
            strict: whether a `GuardlitError` of the scorer is raised, since a retry cannot help; otherwise it is a
                failure like any other.

        Raises:
            GuardlitError: see `strict`; or the scorer did not give one value per image.
        """
        name = name or self.name
        try:
            returned = self.score(request)
        except Exception as error:
            if strict and isinstance(error, GuardlitError):
                raise
            failed = torch.full((len(request),), torch.nan)
            reason = raised(error, name, type(self).__module__)
            return RewardResult.from_values(failed, reason=reason, provenance=self.provenance)
        result = as_result(returned, len(request), name, self.provenance)
        if bool(result.valid.all()):
            return replace(result, reason="")
        return replace(result, reason=f"{name}: {result.reason or 'the score is no number'}")

    def checked(self, request: RewardRequest) -> RewardResult:
        """`score`, with one value per image whatever it returned.

        Raises:
            GuardlitError: the scorer did not give one number per image.
        """
        return as_result(self.score(request), len(request), self.name, self.provenance)

    def self_test(self, prompts: Sequence[Prompt]) -> Tensor:
        """Score two fixed, very different images before a run relies on the scores. Called after `setup`.

        Args:
            prompts: of the run; both images get the first one that the scorer accepts.

        Returns:
            Raw scores (2,), which must be the same on every rank.

        Raises:
            GuardlitError: no prompt fits, a score failed, both are equal although the scorer `distinguishes`, or there
                are no features although it `embeds_images`.
        """
        prompt = next((p for p in prompts if self.accepts(p)), None)
        if prompt is None:
            raise GuardlitError(f"reward '{self.name}': none of the {len(prompts)} prompts can be scored by it")
        result = self.attempt(RewardRequest(two_images(), [prompt.text] * 2, [prompt.metadata] * 2))
        if not bool(result.valid.all()):
            raise GuardlitError(
                f"reward '{self.name}' fails its start-up test on '{prompt.text[:80]}': {result.reason}"
            )
        if self.distinguishes and bool(result.values[0] == result.values[1]):
            raise GuardlitError(
                f"reward '{self.name}' fails its start-up test on '{prompt.text[:80]}': two very different images both "
                f"get {result.values[0]:g}; are these the right weights?"
            )
        if self.embeds_images and result.features is None:
            raise GuardlitError(
                f"reward '{self.name}' fails its start-up test: `embeds_images` is true, and score() gave no features; "
                "return self.result(values, features=...) with one row per image, (B, F)"
            )
        return result.values

    def refusal(self, prompt: Prompt, called: str = "") -> str:
        """Why this scorer can never score a prompt, in one line that names both; empty if nothing is wrong.

        Args:
            prompt: text and metadata.
            called: this scorer in the message; `reward 'NAME'` if left out.

        Raises:
            GuardlitError: the scorer itself cannot be used.
        """
        try:
            self.check_prompt(prompt.text, prompt.metadata)
        except GuardlitError:
            raise
        except Exception as error:  # one's own scorer may look up what the metadata lack
            said = " ".join(str(error).split())
            reason = said if isinstance(error, ValueError) and said else f"{type(error).__name__}: {said}"
            text = prompt.text if len(prompt.text) <= 80 else f"{prompt.text[:77]}..."
            return f"{called or f'reward {self.name!r}'} cannot score the prompt {text!r}: {reason}"
        return ""

    def accepts(self, prompt: Prompt) -> bool:
        """Whether `check_prompt` finds nothing wrong."""
        return not self.refusal(prompt)

    def counters(self) -> Mapping[str, float]:
        """Counts since the last call, by name: requests, retries, ...

        The logs show the sum over ranks, or the largest for a name that ends in a statistic or a unit: `_p50`, `_p95`,
        `_max`, `_share`, `_s`, `_ms`.
        """
        return {}

    def result(
        self, values: Tensor | Sequence[float], *, features: Tensor | None = None, **details: Tensor
    ) -> RewardResult:
        """Wrap raw scores (B,) and further named ones; NaN and infinity become invalid.

        Args:
            values: one number per image, in a tensor, an array or a list.
            features: an image network's embeddings, (B, F), where the scorer `embeds_images`.
            details: (B,) each.
        """
        facts = {"details": details, "provenance": self.provenance, "features": features}
        return RewardResult.from_values(numbers(values, self.name), **facts)

    def close(self) -> None:  # noqa: B027 - optional hook
        """Release the processes and connections that `setup` opened. `setup` may be called again afterwards.

        For a `background` scorer it may be called while `score` runs in another thread: that call then fails, and is
        not waited for.
        """


def two_images() -> Tensor:
    """A color gradient and a chessboard, (2, 3, 256, 256) uint8."""
    ramp = torch.arange(256)
    x, y = ramp.expand(256, 256), ramp[:, None].expand(256, 256)
    board = ((x // 32 + y // 32) % 2 * 255).expand(3, 256, 256)
    return torch.stack([torch.stack([x, y, 255 - x]), board]).to(torch.uint8)
