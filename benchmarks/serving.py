"""The overhead of a served reward: `python benchmarks/serving.py [--images 16] [--side 512]`.

Starts `guardlit serve-reward` in another process on the loopback with a scorer that computes nothing, and takes the
fastest of several calls of `RemoteReward.score`: encoding, transport, checks, decoding, and the response. A network
adds the size of a request over its bandwidth.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from guardlit.rewards import RemoteReward
from guardlit.rewards.base import Scorer
from guardlit.rewards.remote.wire import pack, score_message
from guardlit.serving.messages import read_request, reward_request
from guardlit.types import RewardRequest, RewardResult


class Nothing(Scorer):
    """A score of 0 for every image."""

    def setup(self, device: torch.device) -> None:
        """Nothing to load."""

    def score(self, request: RewardRequest) -> RewardResult:
        """Zeros, (B,)."""
        return self.result(torch.zeros(len(request)))


def smooth_or_grainy(count: int, side: int, noise: float) -> torch.Tensor:
    """Waves of color, different in each image, with noise of `noise` gray levels, (count, 3, side, side) uint8."""
    generator = torch.Generator().manual_seed(0)
    x = torch.arange(side) / side
    phases = torch.rand(count, 3, 1, 1, generator=generator)
    waves = 127 + 100 * torch.sin(6 * (x[:, None] + x + phases)).expand(count, 3, side, side)
    grain = noise * torch.randn(count, 3, side, side, generator=generator)
    return (waves + grain).clamp(0, 255).round().to(torch.uint8)


def best_ms(act: Callable[[], object], repeat: int) -> float:
    """The fastest of several calls: other work on the machine only adds time."""
    seconds = []
    for _ in range(repeat):
        begun = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begun)
    return 1000 * min(seconds)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()
    here = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "guardlit", "serve-reward", "--scorers.nothing", "serving.Nothing", "--port", "0"]
    table = Table(title=f"{args.images} images of {args.side} x {args.side} pixels, one request, loopback")
    for column in ("images", "sent as", "MB", "encode ms", "decode ms", "round trip ms", "ms/image"):
        table.add_column(column, justify="right")
    environment = {**os.environ, "PYTHONPATH": here}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            ready = re.search(r"ready on (\S+)", server.stdout.readline())
            assert ready, "the server did not start"
            for kind, noise in (("smooth", 0.0), ("grainy", 8.0)):
                for row in rows(ready[1], smooth_or_grainy(args.images, args.side, noise), args.repeat):
                    table.add_row(kind, *row)
        finally:
            server.terminate()
    Console(width=110).print(table)


def rows(url: str, images: torch.Tensor, repeat: int) -> list[list[str]]:
    """One row per image format."""
    request = RewardRequest(images, ["an image"] * len(images), [{}] * len(images))
    table = []
    for format in ("raw", "png"):
        remote = RemoteReward(url, images=format)
        remote.setup(torch.device("cpu"))
        body = pack(score_message(request, None, format))
        encode = best_ms(lambda format=format: pack(score_message(request, None, format)), repeat)
        decode = best_ms(lambda body=body: reward_request(read_request(body, "application/msgpack"), 10**9), repeat)
        total = best_ms(lambda remote=remote: remote.score(request), repeat)
        remote.close()
        cells = [len(body) / 1e6, encode, decode, total, total / len(images)]
        table.append([format, *(f"{cell:.1f}" for cell in cells)])
    return table


if __name__ == "__main__":
    main()
