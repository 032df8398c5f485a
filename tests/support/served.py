"""Requests to a reward server under test, and a scorer that waits."""

from __future__ import annotations

import io
import json
import threading

import httpx2
import numpy as np
import torch
from PIL import Image

from guardlit.rewards.base import Scorer
from guardlit.rewards.remote.wire import MSGPACK, pack, score_message
from guardlit.types import RewardRequest, RewardResult


def pixels(count: int = 1, side: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def message(images: torch.Tensor | None = None, prompt: str = "a cat", scorer: str | None = None, **changes) -> dict:
    images = pixels() if images is None else images
    request = RewardRequest(images, [prompt] * len(images), [{}] * len(images))
    return score_message(request, scorer, "raw") | changes


def post(url: str, body: object, kind: str = MSGPACK, timeout: float = 30, **headers: str) -> httpx2.Response:
    content = body if isinstance(body, bytes) else pack(body) if kind == MSGPACK else json.dumps(body).encode()
    with httpx2.Client(trust_env=False, timeout=timeout) as client:
        return client.post(f"{url}/v1/score", content=content, headers={"content-type": kind, **headers})


def png(image: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).convert(mode or "RGB").save(file, format="PNG")
    return file.getvalue()


class Gate(Scorer):
    """Mean gray level, once the gate is open; records the size of each batch."""

    def __init__(self) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.closed = False

    def setup(self, device: torch.device) -> None: ...

    def score(self, request: RewardRequest) -> RewardResult:
        self.entered.set()
        assert self.opened.wait(30)
        self.batches.append(len(request))
        self.threads.add(threading.get_ident())
        if "poison" in request.prompts:
            raise ArithmeticError("first line\nsecond line")
        return self.result(request.images.float().mean((1, 2, 3)))

    def close(self) -> None:
        self.closed = True


def wait_for(url: str, in_progress: int) -> None:
    with httpx2.Client(trust_env=False, timeout=10) as client:
        while client.get(f"{url}/healthz").json()["under_way"] != in_progress:
            pass
