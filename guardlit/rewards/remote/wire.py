"""Protocol 1 between `guardlit serve-reward` and its clients: messages of names, numbers, texts and lossless images.

docs/serving.md has it as a table. Nothing here can carry code: msgpack and JSON hold data alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from guardlit.types import RewardRequest

PROTOCOL = 1
MSGPACK, JSON = "application/msgpack", "application/json"

ImageFormat = Literal["raw", "png"]
"""`raw` is the quickest on one machine and in its rack; `png` (level 1) is smaller, for slow links."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as msgpack."""
    import msgpack

    packed: bytes = msgpack.packb(message)
    return packed


def unpack(body: bytes) -> Any:
    """What a msgpack body says; raises `ValueError` in one line where it is not whole and nothing but msgpack."""
    import msgpack

    try:
        return msgpack.unpackb(body)
    except Exception as error:  # the library raises ValueError, UnicodeDecodeError, its own, or TypeError for a map key
        raise ValueError(f"not msgpack ({str(error) or type(error).__name__})") from error


def encode_image(pixels: Tensor, format: ImageFormat) -> dict[str, Any]:
    """One image, (3, height, width) uint8, without loss."""
    if format == "raw":
        return {"format": "raw", "shape": list(pixels.shape), "dtype": "uint8", "data": pixels.numpy().tobytes()}
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, format="PNG", compress_level=1)
    return {"format": "png", "data": file.getvalue()}


def score_message(request: RewardRequest, scorer: str | None, format: ImageFormat) -> dict[str, Any]:
    """Ask for the scores of B images."""
    images = request.images.cpu().contiguous()
    items = [
        {"prompt": prompt, "metadata": dict(metadata), "image": encode_image(pixels, format)}
        for prompt, metadata, pixels in zip(request.prompts, request.metadata, images, strict=True)
    ]
    return {"protocol": PROTOCOL, "items": items} | ({} if scorer is None else {"scorer": scorer})


@dataclass(frozen=True)
class Answer:
    """What a server said of B images.

    Attributes:
        values: (B,) float32; NaN where it gave no number.
        details: further named scores, (B,) float32; NaN where one is missing.
        provenance: what gave these values.
        reason: why the first image without a number has none; empty if all have one.
    """

    values: Tensor
    details: Mapping[str, Tensor]
    provenance: Mapping[str, str]
    reason: str

    @classmethod
    def failed(cls, count: int, reason: str) -> Answer:
        """No number for any of `count` images."""
        return cls(torch.full((count,), torch.nan), {}, {}, reason)


def read_answer(message: Any, count: int) -> Answer:
    """Take a server's message apart, and believe nothing of it that the protocol does not allow.

    Args:
        message: anything.
        count: B, images that were sent.

    Raises:
        ValueError: it is no answer to `count` images, said in one line. An item that is none only fails itself.
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
    """Value, details and what is wrong with them."""
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
    text = value if isinstance(value, str) else repr(value)
    return " ".join(text[:200].split())
