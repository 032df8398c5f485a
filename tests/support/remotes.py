"""Requests, and clients of reward servers that give up quickly."""

from __future__ import annotations

import pytest
import torch

from guardlit.errors import GuardlitError
from guardlit.rewards import RemoteReward
from guardlit.rewards.remote.client import Limits
from guardlit.types import RewardRequest

CPU = torch.device("cpu")
QUICK = Limits(connect=2, read=0.25, attempts=2, total=0.6, concurrency=4)


def request(count: int = 4, side: int = 8, prompt: str = "a cat") -> RewardRequest:
    """Images that are each of one gray level: 0, 1, 2, ..."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, side, side)
    return RewardRequest(images.contiguous(), [prompt] * count, [{"n": i} for i in range(count)])


def ready(*args: object, **settings: object) -> RemoteReward:
    scorer = RemoteReward(*args, **{"limits": Limits(attempts=2)} | settings)
    scorer.setup(CPU)
    return scorer


def said_at_setup(*args: object, **settings: object) -> str:
    with pytest.raises(GuardlitError) as raised:
        ready(*args, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)
