"""Requests and responses of protocol 1, validated."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from guardlit.rewards.remote.wire import JSON, PROTOCOL, pack, unpack
from guardlit.types import RewardRequest, RewardResult


class Refusal(Exception):  # noqa: N818 - an error of the client
    """A request that is refused.

    Attributes:
        status: of HTTP, 4xx.
        headers: of the response.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


class _Message:
    """Unknown keys are errors; bytes are base64 in JSON."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "val_json_bytes": "base64"}


@dataclass(frozen=True)
class ImageMessage(_Message):
    """An image: `raw` holds shape[0] x shape[1] x shape[2] = 3 x height x width bytes, `png` a file."""

    data: bytes
    format: Literal["raw", "png"] = "png"
    shape: list[int] | None = None
    dtype: Literal["uint8"] = "uint8"


@dataclass(frozen=True)
class ItemMessage(_Message):
    """One image and its prompt."""

    prompt: str
    image: ImageMessage
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreMessage(_Message):
    """A request; `scorer` is optional if only one is served."""

    protocol: Literal[1]
    items: list[ItemMessage]
    scorer: str | None = None


def read_request(body: bytes, media_type: str) -> ScoreMessage:
    """Validate a body; raises `Refusal` (400) with one line that names the first error."""
    from pydantic import ValidationError

    try:
        check = _adapter()
        message: ScoreMessage = check.validate_json(body) if media_type == JSON else check.validate_python(unpack(body))
    except ValidationError as error:
        raise Refusal(400, _first(error)) from error
    except ValueError as error:
        raise Refusal(400, f"the body is {error}") from error
    if not message.items:
        raise Refusal(400, "items: at least one is needed")
    return message


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(ScoreMessage)


def _first(error: Any) -> str:
    """The first error that pydantic found, in one line."""
    found = error.errors(include_url=False, include_context=False)[0]
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in found["loc"]).lstrip(".")
    return f"{place or 'the body'}: {found['msg']}"


def reward_request(message: ScoreMessage, max_bytes: int) -> RewardRequest:
    """Decode B images.

    Args:
        message: as `read_request` returned it.
        max_bytes: of all decoded images in total: a small file can hold a huge image.

    Raises:
        Refusal: an image that is corrupt, of another kind or size (400), or too large (413).
    """
    images: list[Tensor] = []
    for index, item in enumerate(message.items):
        place = f"items[{index}].image"
        left = max_bytes - sum(image.numel() for image in images)
        image = _raw(item.image, place) if item.image.format == "raw" else _png(item.image.data, place, left)
        if images and image.shape != images[0].shape:
            sizes = " and ".join(f"{i.shape[2]} x {i.shape[1]}" for i in (images[0], image))
            raise Refusal(400, f"{place}: images of a request must be of one size, found {sizes}")
        images.append(image)
    return RewardRequest(
        torch.stack(images), [item.prompt for item in message.items], [item.metadata for item in message.items]
    )


def _raw(image: ImageMessage, place: str) -> Tensor:
    shape = image.shape
    if shape is None or len(shape) != 3 or shape[0] != 3 or min(shape) < 1:
        raise Refusal(400, f"{place}.shape: expected [3, height, width], found {shape}")
    if len(image.data) != math.prod(shape):
        raise Refusal(400, f"{place}.data: shape {shape} takes {math.prod(shape)} bytes, found {len(image.data)}")
    return torch.frombuffer(bytearray(image.data), dtype=torch.uint8).view(shape)


def _png(data: bytes, place: str, max_bytes: int) -> Tensor:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as file:  # reads the header alone
            if file.mode != "RGB":
                raise Refusal(400, f"{place}.data: a PNG of 8 bit RGB is needed, found mode {file.mode}")
            if 3 * file.width * file.height > max_bytes:
                raise Refusal(413, f"{place}: {file.width} x {file.height} pixels are more than this server takes")
            pixels = np.array(file)
    except Refusal:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, zlib's and its own
        raise Refusal(400, f"{place}.data: not an intact PNG file") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def items_of(result: RewardResult, errors: Mapping[int, str]) -> list[dict[str, Any]]:
    """The response's items: a value or an error each, and further scores; null where one of those failed.

    Args:
        result: of B images.
        errors: reasons of failures, by image.
    """
    items: list[dict[str, Any]] = []
    rows = zip(result.values.tolist(), result.valid.tolist(), strict=True)
    for index, (value, valid) in enumerate(rows):
        good = valid and math.isfinite(value)
        item: dict[str, Any] = (
            {"value": value} if good else {"error": errors.get(index, result.reason or "the score is no finite number")}
        )
        details = {name: float(column[index]) for name, column in result.details.items()}
        if details:
            item["details"] = {name: score if math.isfinite(score) else None for name, score in details.items()}
        items.append(item)
    return items


def write_response(
    scorer: str, items: Sequence[Mapping[str, Any]], provenance: Mapping[str, str], media_type: str
) -> bytes:
    """The body of a response, in the media type of its request."""
    message = {"protocol": PROTOCOL, "scorer": scorer, "provenance": dict(provenance), "items": list(items)}
    return json.dumps(message, allow_nan=False).encode() if media_type == JSON else pack(message)
