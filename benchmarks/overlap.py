"""Measures how scoring overlaps with the rollout: `python benchmarks/overlap.py [--pixels 128] [--rounds 5]`.

Samples rounds of a random Stable Diffusion 3 model. A server in another process scores them over HTTP on loopback in
50 ms an image: it encodes the image as a JPEG file and sleeps for the rest, like a network on another GPU. With
`--busy` it computes for 50 ms instead and contends for this machine's cores. One process times sampling alone, scoring
alone, both in sequence and both overlapped, one after another. The fastest round of each is the least disturbed one.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from guardlit.data.datamodule import PromptDataModule
from guardlit.objective import GRPOGuard
from guardlit.policies import LoRA, SD3Policy
from guardlit.processes.world import World
from guardlit.rewards import JPEGCompressibility, Reward, Scorer
from guardlit.rounds.reward_runner import RewardRunner
from guardlit.rounds.settings import Rollout
from guardlit.training.module import GRPOModule
from guardlit.types import RewardRequest, RewardResult

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 0.05
"""The server's time for an image."""
PROMPTS, IMAGES, BATCH = 4, 16, 4
"""Of a round: prompts, images of each, and images sampled at once."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Scores (B, height, width, 3) uint8 images, one after another."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise a reply waits 40 ms for an ACK
    busy = False
    turn = threading.Lock()  # one network

    def do_POST(self) -> None:
        """Answer with JPEG kilobytes."""
        shape = json.loads(self.headers["x-shape"])
        images = np.frombuffer(self.rfile.read(int(self.headers["content-length"])), np.uint8).reshape(shape)
        with self.turn:
            body = json.dumps([self._score(image) for image in images]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _score(self, image: np.ndarray) -> float:
        due = time.perf_counter() + SECONDS
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=95)
        while self.busy and time.perf_counter() < due:
            Image.fromarray(image).save(io.BytesIO(), format="JPEG", quality=95)
        time.sleep(max(due - time.perf_counter(), 0))
        return file.tell() / 1000

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class Remote(Scorer):
    """Asks the server.

    Args:
        port: of the server, on loopback.
    """

    background = True

    def __init__(self, port: int) -> None:
        self.port = port

    def setup(self, device: torch.device) -> None:
        """Connect."""
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port)

    def score(self, request: RewardRequest) -> RewardResult:
        """JPEG kilobytes."""
        images = request.images.permute(0, 2, 3, 1).numpy()
        self._connection.request("POST", "/", images.tobytes(), {"x-shape": json.dumps(images.shape)})
        return self.result(torch.tensor(json.loads(self._connection.getresponse().read())))

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class AtOnce(Remote):
    """The same, waited for: what a run without overlap does."""

    background = False


class Finished(Exception):  # noqa: N818 - not an error
    """Every timing is done."""


class Clock(pl.Callback):
    """Collects rounds with different rewards, one after another, and does not train."""

    def __init__(self, port: int, rounds: int) -> None:
        self._rewards = {"sampling": JPEGCompressibility(), "overlapped": Remote(port), "in sequence": AtOnce(port)}
        self._rounds = rounds
        self.seconds: dict[str, list[float]] = {
            name: [] for name in ("sampling", "scoring", "overlapped", "in sequence")
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: GRPOModule) -> None:
        """Time everything; the first time of each is discarded."""
        data: PromptDataModule = trainer.datamodule
        for index in range(self._rounds + 1):
            for name, reward in self._rewards.items():
                pl_module.reward_runner.close()
                pl_module.reward_runner = RewardRunner(Reward.of(reward), World.of(trainer))
                metrics = pl_module.collect(data.round(index), BATCH).metrics
                total = metrics["time/rollout_s"] + metrics["time/reward_s"]
                self._note(index, name, metrics["time/rollout_s"] if name == "sampling" else total)
            self._note(index, "scoring", self._alone(data.round(index).prompts[0].text, pl_module))
        raise Finished

    def _alone(self, prompt: str, module: GRPOModule) -> float:
        """Seconds for as many images, in the same requests."""
        pixels = 8 * module.policy.latent_shape[-1]
        images = torch.randint(0, 256, (BATCH, 3, pixels, pixels), dtype=torch.uint8)
        request = RewardRequest(images, [prompt] * BATCH, [{}] * BATCH)
        begun = time.perf_counter()
        for _ in range(PROMPTS * IMAGES // BATCH):
            self._rewards["overlapped"].score(request)
        return time.perf_counter() - begun

    def _note(self, index: int, name: str, seconds: float) -> None:
        if index:
            self.seconds[name].append(seconds)


@contextmanager
def server(busy: bool) -> Iterator[int]:
    """Run the server in a separate process, and yield its port."""
    command = [sys.executable, __file__, "--serve", *(["--busy"] if busy else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def serve(busy: bool) -> None:
    """Serve, and print the port."""
    Handler.busy = busy
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        print(running.server_port, flush=True)
        running.serve_forever()


def measure(pixels: int, rounds: int, port: int) -> dict[str, list[float]]:
    """Seconds a round, by kind of round."""
    from tiny_folders import make_sd3

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_sd3(folder / "model", sample_size=pixels // 8)
        (folder / "prompts.txt").write_text("\n".join(f"prompt {i}" for i in range(PROMPTS)))
        policy = SD3Policy(str(folder / "model"), resolution=pixels, lora=LoRA(), max_sequence_length=32, cache=None)
        module = GRPOModule(policy, JPEGCompressibility(), objective=GRPOGuard(1e-4), rollout=Rollout(10, 4.5))
        data = PromptDataModule(str(folder / "prompts.txt"), None, PROMPTS, IMAGES, 2, 1, 4, BATCH)
        clock = Clock(port, rounds)
        options: dict[str, Any] = dict(enable_progress_bar=False, enable_model_summary=False, logger=False)
        trainer = pl.Trainer(max_epochs=1, callbacks=[clock], default_root_dir=folder, accelerator="cpu", **options)
        try:
            trainer.fit(module, data)
        except Finished:
            module.reward_runner.close()
        return clock.seconds


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.busy)
        return
    with server(args.busy) as port:
        seconds = measure(args.pixels, args.rounds, port)
    images = PROMPTS * IMAGES
    table = Table(
        title=f"{images} images of {args.pixels} pixels, {BATCH} at once, 50 ms each to score; seconds a round"
    )
    for column in ("", *seconds, "overlapped / longer of the two alone"):
        table.add_column(column, justify="right")
    for name, choose in (("fastest", min), ("median", statistics.median)):
        chosen = {key: choose(values) for key, values in seconds.items()}
        ratio = chosen["overlapped"] / max(chosen["sampling"], chosen["scoring"])
        table.add_row(name, *(f"{value:.2f}" for value in chosen.values()), f"{ratio:.3f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
