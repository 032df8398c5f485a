"""Protocol 1 between `guardlit serve-reward` and its clients: messages of names, numbers, texts and lossless images.

docs/serving.md has it as a table. No message can carry code: msgpack and JSON hold only data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from guardlit.rewards.images import image_file
from guardlit.rewards.remote.retries import shorten
from guardlit.types import RewardRequest

PROTOCOL = 1
MSGPACK, JSON = "application/msgpack", "application/json"

ImageFormat = Literal["raw", "png"]
"""`raw` is the fastest on one machine or a fast network; `png` (level 1) is smaller, for slow links."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as msgpack."""
    import msgpack

    packed: bytes = msgpack.packb(message)
    return packed


def unpack(body: bytes) -> Any:
    """The message in a msgpack body; raises `ValueError` in one line for any other body."""
    import msgpack

    try:
        return msgpack.unpackb(body)
    except Exception as error:  # ValueError, UnicodeDecodeError, TypeError for a map key, or the library's own
        raise ValueError(f"not msgpack ({str(error) or type(error).__name__})") from error


def encode_image(pixels: Tensor, format: ImageFormat) -> dict[str, Any]:
    """One image, (3, height, width) uint8, without loss."""
    if format == "raw":
        return {"format": "raw", "shape": list(pixels.shape), "dtype": "uint8", "data": pixels.numpy().tobytes()}
    return {"format": "png", "data": image_file(pixels.permute(1, 2, 0).numpy(), "PNG", compress_level=1)}


def score_message(request: RewardRequest, scorer: str | None, format: ImageFormat) -> dict[str, Any]:
    """The request for the scores of B images."""
    images = request.images.cpu().contiguous()
    items = [
        {"prompt": prompt, "metadata": dict(metadata), "image": encode_image(pixels, format)}
        for prompt, metadata, pixels in zip(request.prompts, request.metadata, images, strict=True)
    ]
    return {"protocol": PROTOCOL, "items": items} | ({} if scorer is None else {"scorer": scorer})


@dataclass(frozen=True)
class Answer:
    """A server's scores of B images.

    Attributes:
        values: (B,) float32; NaN where there is no number.
        details: further named scores, (B,) float32; NaN where one is missing.
        provenance: of the values.
        reason: why the first image without a number failed; empty if all have one.
    """

    values: Tensor
    details: Mapping[str, Tensor]
    provenance: Mapping[str, str]
    reason: str

    @classmethod
    def failed(cls, count: int, reason: str) -> Answer:
        """A failure of all of `count` images."""
        return cls(torch.full((count,), torch.nan), {}, {}, reason)


def read_answer(message: Any, count: int) -> Answer:
    """Parse a server's message; only what the protocol allows is accepted.

    Args:
        message: anything.
        count: B, images that were sent.

    Raises:
        ValueError: not an answer for `count` images, in one line. An invalid item fails only its image.
    """
    if not isinstance(message, dict) or message.get("protocol") != PROTOCOL:
        raise ValueError(f"the answer is not of protocol {PROTOCOL}")
    items, provenance = message.get("items"), message.get("provenance")
    if not isinstance(items, list) or len(items) != count:
        found = len(items) if isinstance(items, list) else "no"
        raise ValueError(f"the answer has {found} items for {count} images")
    if not isinstance(provenance, dict) or not all(
        isinstance(word, str) for pair in provenance.items() for word in pair
    ):
        raise ValueError("the answer has no provenance")
    values, named, reason = [], [], ""
    for item in items:
        value, details, problem = _read_item(item)
        values.append(value)
        named.append(details)
        reason = reason or problem
    names = dict.fromkeys(name for details in named for name in details)
    columns = {name: torch.tensor([details.get(name, math.nan) for details in named]) for name in names}
    return Answer(torch.tensor(values), columns, provenance, reason)


def _read_item(item: Any) -> tuple[float, dict[str, float], str]:
    """Value, details and error."""
    if not isinstance(item, dict):
        return math.nan, {}, f"expected a value or an error, found {_short(item)}"
    details = item.get("details", {})
    if not isinstance(details, dict) or not all(isinstance(name, str) for name in details):
        return math.nan, {}, f"details are {_short(details)}"
    numbers = {name: float(value) if _is_number(value) else math.nan for name, value in details.items()}
    if "error" in item:
        return math.nan, numbers, f"the scorer failed: {_short(item['error'])}"
    if not _is_number(item.get("value")):
        return math.nan, numbers, f"expected a finite number, found {_short(item.get('value'))}"
    return float(item["value"]), numbers, ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    return shorten(value if isinstance(value, str) else repr(value))
