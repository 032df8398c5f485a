"""A client of the public reward-server (github.com/yifan123/reward-server), to reproduce results obtained with it."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NoReturn

import torch

from guardlit.rewards.images import image_file
from guardlit.rewards.remote.client import Call, Limits
from guardlit.rewards.remote.scorer import ServedScorer
from guardlit.rewards.remote.wire import Answer
from guardlit.types import RewardRequest

_QUALITY = 75  # Pillow's default, which that protocol's clients use
_SCORES = ("scores", "rewards", "strict_rewards", "outputs")


class PickleReward(ServedScorer):
    """Scores over the protocol `reward-server-pickle`: for reproduction only.

    That protocol sends images as JPEG files of quality 75, so a score is not that of the exact image. Both directions
    are pickled, without a token. This client sends plain data, and reads replies with an unpickler that resolves no
    name: lists, mappings, texts and numbers pass, everything else is a failed score. The server does not identify its
    model.

    Args:
        url: address of the server, e.g. http://127.0.0.1:18085 for its GenEval.
        value: which list of the answer is the reward: `scores`, `rewards` (official) or `strict_rewards` of GenEval,
            `outputs` of DeQA. The other lists are details.
        only_strict: skip the official score on GenEval's server; `rewards` are 0 then.
        chunk: images per call, at most; that project's clients send 64.
        limits: time-outs, attempts and concurrency.
    """

    def __init__(
        self,
        url: str,
        value: Literal["scores", "rewards", "strict_rewards", "outputs"] = "scores",
        only_strict: bool = True,
        chunk: int | None = 64,
        limits: Limits = Limits(concurrency=8),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(url, chunk, limits, None)
        if only_strict and value == "rewards":
            raise ValueError("value: rewards are 0 for every image unless only_strict is false")
        self.value, self.only_strict = value, only_strict

    @property
    def provenance(self) -> Mapping[str, str]:
        """Protocol, address and options; the protocol does not identify the model."""
        return {
            "scorer": self.name,
            "protocol": "reward-server-pickle",
            "url": self.url,
            "value": self.value,
            "only_strict": str(self.only_strict),
            "images": f"JPEG quality {_QUALITY}",
        }

    def call(self, request: RewardRequest) -> Call[Answer]:
        """One request: JPEG files, prompts and metadata."""
        read = partial(_read, len(request), self.value)
        return Call("POST", "/", read, partial(_body, request, self.only_strict), "application/octet-stream")


def _body(request: RewardRequest, only_strict: bool) -> bytes:
    pairs = zip(request.prompts, request.metadata, strict=True)
    message = {
        "images": [
            image_file(pixels, "JPEG", quality=_QUALITY) for pixels in request.images.permute(0, 2, 3, 1).numpy()
        ],
        "prompts": list(request.prompts),
        "meta_datas": [{"prompt": prompt, **metadata} for prompt, metadata in pairs],
        "only_strict": only_strict,
    }
    return pickle.dumps(message)


class DataUnpickler(pickle.Unpickler):
    """Reads plain data; every class, function and persistent object is refused before its import."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse."""
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, and plain data alone is read")


def _read(count: int, value: str, body: bytes) -> Answer:
    message = DataUnpickler(io.BytesIO(body)).load()
    if not isinstance(message, dict):
        raise ValueError(f"the answer is a {type(message).__name__}, not a dict")
    columns = {name: _column(name, message[name], count) for name in _SCORES if name in message}
    if value not in columns:
        raise ValueError(f"the answer has no '{value}'")
    values = columns.pop(value)
    reason = "" if bool(torch.isfinite(values).all()) else f"'{value}' holds what is no finite number"
    return Answer(values, columns, {}, reason)


def _column(name: str, scores: Any, count: int) -> torch.Tensor:
    if not isinstance(scores, list) or len(scores) != count:
        found = len(scores) if isinstance(scores, list) else f"a {type(scores).__name__}"
        raise ValueError(f"the answer has {found} {name} for {count} images")
    return torch.tensor([float(s) if type(s) in (int, float) and math.isfinite(s) else math.nan for s in scores])
