"""UnifiedReward (arXiv:2503.05236): a vision-language model on a server that answers with a score."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from guardlit.errors import GuardlitError
from guardlit.rewards.images import image_file
from guardlit.rewards.outcome import first_error
from guardlit.rewards.remote.base import ClientScorer
from guardlit.rewards.remote.client import Call, Limits
from guardlit.rewards.remote.unifiedreward_texts import IMAGE_LINE, TEMPLATES
from guardlit.types import RewardRequest, RewardResult

_PROBE_SECONDS = 30
_CONTROL = re.compile(r"<image>|<\|\w+\|>")  # a server's tokenizer reads these as control tokens, not as words


class UnifiedReward(ClientScorer):
    """The model's score from 1 to 5, raw, at temperature 0.

    With `template: "2.0"` the model gives three scores: `details` holds `alignment`, `coherence` and `style`, and the
    value is their mean. No script of its authors combines the three, so the mean is our choice.

    A sample whose request fails, or whose answer holds no valid score, is NaN and invalid. The values depend on the
    weights on the server, which it does not identify: the provenance holds the name under which it serves them.

    Args:
        base_url: address of a server with `/v1/chat/completions`, such as `http://127.0.0.1:8080`.
        template: text of the request; it must be the one that the served model was trained on.
        model: its name on the server; may be left out if the server has only one.
        image_line: begin the text with a line `<image>`; by default as published: with 7b-v1.5, a LLaVA model, but not
            with 2.0. The Qwen models of version 1 must not have it.
        image_size: images are resized to this square and sent as PNG; null sends them unresized.
        limits: time-outs, attempts and concurrency.
        token_env: name of the environment variable that holds the server's key, if it needs one.
    """

    name = "unifiedreward"

    def __init__(
        self,
        base_url: str,
        template: Literal["7b-v1.5", "7b-v1.5-long", "2.0"] = "7b-v1.5",
        model: str | None = None,
        image_line: bool | None = None,
        image_size: int | None = 512,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        token_env: str | None = None,
    ) -> None:
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size of unifiedreward is {image_size}; it must be a number of pixels, or null")
        super().__init__(base_url.rstrip("/").removesuffix("/v1"), limits, token_env)
        self.template = template
        self.model = model
        self.image_line = TEMPLATES[template].image_line if image_line is None else image_line
        self.image_size = image_size

    @property
    def provenance(self) -> Mapping[str, str]:
        """Scorer, served name, template, image."""
        return {
            "scorer": self.name,
            "model": str(self.model),
            "template": self.template,
            "image_line": str(self.image_line),
            "image_size": str(self.image_size),
        }

    def check_prompt(self, prompt: str, metadata: Mapping[str, object]) -> None:
        """Raise `ValueError` for a prompt that holds a control token."""
        if found := _CONTROL.search(prompt):
            raise ValueError(f"it holds {found[0]!r}, which a model behind a chat server takes for its own")

    def check_server(self) -> None:
        """Choose the model on the server; raises `GuardlitError` if the server cannot be reached or lacks the model."""
        self.model = self._choose(self.client.ask(Call("GET", "/v1/models", _served), _PROBE_SECONDS))
        self.client.counters()  # resets them: this call was not a score

    def _choose(self, served: list[str]) -> str:
        names = ", ".join(served) or "no model"
        if self.model is None and len(served) == 1:
            return served[0]
        if self.model is None:
            raise GuardlitError(f"{self.url} serves {names}; set `model` of unifiedreward to one of them")
        if self.model not in served:
            raise GuardlitError(f"{self.url} serves {names}, but not {self.model!r}, the `model` of unifiedreward")
        return self.model

    def score(self, request: RewardRequest) -> RewardResult:
        """Score B images of any size, (B,)."""
        pixels = request.images.permute(0, 2, 3, 1).cpu().numpy()
        bodies = [partial(self._body, image, prompt) for image, prompt in zip(pixels, request.prompts, strict=True)]
        outcomes = self.client.map([Call("POST", "/v1/chat/completions", self._read, body) for body in bodies])
        labels = TEMPLATES[self.template].labels
        failed = (float("nan"),) * len(labels)
        scores = torch.tensor([failed if o.value is None else o.value for o in outcomes]).view(-1, len(labels))
        axes = {label.split()[0].lower(): column for label, column in zip(labels, scores.T, strict=True)}
        return RewardResult.from_values(
            scores.mean(dim=1),
            details=axes if len(axes) > 1 else {},
            provenance=self.provenance,
            reason=first_error(outcomes),
        )

    def _body(self, pixels: np.ndarray, prompt: str) -> bytes:
        template = TEMPLATES[self.template]
        # the published bicubic resize; the pixels are the same at any compression level
        png = image_file(pixels, "PNG", self.image_size, compress_level=1)
        picture = "data:image/png;base64," + base64.b64encode(png).decode()
        text = IMAGE_LINE * self.image_line + template.ask(prompt)
        content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": template.max_tokens,
        }
        return json.dumps(body).encode()

    def _read(self, body: bytes) -> tuple[float, ...]:
        choice = json.loads(body)["choices"][0]
        # some servers leave the reason out; every one that is given and is not "stop" means an unfinished answer
        if (reason := choice.get("finish_reason")) not in ("stop", None):
            raise ValueError(f"the answer ended by {reason!r}")
        return TEMPLATES[self.template].read(choice["message"]["content"])


def _served(body: bytes) -> list[str]:
    models: list[Any] = json.loads(body)["data"]
    return [str(model["id"]) for model in models]
