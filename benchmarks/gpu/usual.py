"""Times the usual loop, written from its description, and guardlit's loop on the same work.

The usual loop encodes the prompts again for each batch of images, samples, and stores latents and log-probabilities.
All images are scored after sampling. Then each timestep of each batch is one forward and backward pass, whose ratio is
the exponential of the difference of two log-probabilities.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.models import CLIP_G, CLIP_L, T5, policy_of, randomize
from benchmarks.gpu.runs import done, fit, real_arguments, sizes
from benchmarks.gpu.stage import Bench, NotMeasuredError, Stage

ROWS = ("usual loop / guardlit, round", "usual loop / guardlit, rollout", "usual loop / guardlit, update")
IMAGES, GROUP, BATCH, STEPS = (18, 4), (9, 2), (9, 2), (10, 3)


def run(bench: Bench) -> None:
    """Run the shipped settings and the usual loop in separate processes; the second of two rounds counts."""
    images, group, batch, steps = (bench.size(*pair) for pair in (IMAGES, GROUP, BATCH, STEPS))
    arguments = real_arguments(bench, "sd35", sizes(images, group, batch, batch, 2, steps), preset=None)
    ours = fit(bench, "guardlit", "sd35", arguments)["rounds"][-1]
    out = bench.folder / "usual.json"
    done(bench, "usual loop", lambda: _Usual(bench, images, batch, steps).write(out))
    theirs = json.loads(out.read_text())
    note = f"{images} images, {steps} steps, guidance 4.5, batch {batch}, stored old policy; random weights"
    total = {name: r["rollout"] + r["update"] for name, r in (("ours", ours), ("theirs", theirs))}
    bench.row(ROWS[0], total["theirs"] / total["ours"], "x", f"{total['theirs']:.2f} s / {total['ours']:.2f} s; {note}")
    for name, phase in zip(ROWS[1:], ("rollout", "update"), strict=True):
        bench.row(name, theirs[phase] / ours[phase], "x", f"{theirs[phase]:.2f} s / {ours[phase]:.2f} s")


class _Encoders:
    """Three text encoders of the published sizes, in float16 on a GPU, on random tokens."""

    def __init__(self, bench: Bench, width: int, pooled: int) -> None:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

        self._width, self._pooled, self._kind = width, pooled, bench.kind
        small = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
        tiny_t5 = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1}
        clips = [CLIPTextConfig(**bench.size(c, small), projection_dim=c["hidden_size"]) for c in (CLIP_L, CLIP_G)]
        makers = [lambda c=c: CLIPTextModelWithProjection(c) for c in clips]
        makers.append(lambda: T5EncoderModel(T5Config(**bench.size(T5, tiny_t5))))
        dtype = torch.float16 if bench.kind == "cuda" else torch.float32
        self._models = []
        for make in makers:
            with torch.device("meta"):
                model = make()
            self._models.append(randomize(model.to_empty(device=bench.kind).to(dtype)).eval())
        self._lengths, self._tokens = (77, 77, bench.size(128, 16)), bench.size(77 + 128, 16)

    @torch.no_grad()
    def __call__(self, count: int) -> dict[str, Tensor]:
        """The transformer's inputs for `count` prompts: the encoders run, and noise replaces their output."""
        for model, length in zip(self._models, self._lengths, strict=True):
            model(torch.randint(3, 1000, (count, length), device=self._kind))
        embeds = torch.randn(count, self._tokens, self._width, device=self._kind)
        return {
            "encoder_hidden_states": embeds,
            "pooled_projections": torch.randn(count, self._pooled, device=self._kind),
        }


class _Usual:
    """Two rounds of the usual loop; the second counts."""

    def __init__(self, bench: Bench, images: int, batch: int, steps: int) -> None:
        self._bench, self._images, self._batch, self._steps = bench, images, batch, steps
        self._precision = "fp16" if bench.kind == "cuda" else "fp32"

    def write(self, out: Path) -> None:
        with policy_of(self._bench.folder / "sd35", "sd35", self._bench.kind, self._bench.rehearse) as policy:
            self._policy, self._net = policy, policy.transformer
            config = self._net.config
            self._encode = _Encoders(self._bench, config.joint_attention_dim, config.pooled_projection_dim)
            self._empty = self._encode(1)
            self._trained = [p for p in policy.parameters() if p.requires_grad]
            self._optimizer = torch.optim.AdamW(self._trained, lr=1e-4)
            self._scaler = torch.amp.GradScaler(self._bench.kind, enabled=self._bench.kind == "cuda")
            self._sigmas = policy.sigmas(self._steps).float().to(self._bench.kind)
            for _ in range(2):
                result = self._round()
        out.write_text(json.dumps(result))

    def _round(self) -> dict[str, float]:
        measure.wait(self._bench.kind)
        begun = time.perf_counter()
        batches = [self._draw() for _ in range(self._images // self._batch)]
        rewards = [self._score(batch["pixels"]) for batch in batches]
        values = torch.cat(rewards)
        advantages = ((values - values.mean()) / (values.std() + 1e-4)).to(self._bench.kind).split(self._batch)
        measure.wait(self._bench.kind)
        middle = time.perf_counter()
        for batch, advantage in zip(batches, advantages, strict=True):
            self._update(batch, advantage, last=batch is batches[-1] or batch is batches[len(batches) // 2 - 1])
        measure.wait(self._bench.kind)
        return {"rollout": middle - begun, "update": time.perf_counter() - middle}

    @torch.no_grad()
    def _draw(self) -> dict[str, Any]:
        conditioning = self._encode(self._batch)
        x = torch.randn(self._batch, *self._policy.latent_shape, device=self._bench.kind)
        latents, likelihoods = [x], []
        for step in range(self._steps):
            with measure.precision(self._bench.kind, self._precision):
                velocity = self._velocity(x, step, conditioning)
            mean, std = self._transition(x, velocity, step)
            x = mean + std * torch.randn_like(x)
            latents.append(x)
            likelihoods.append(_log_probability(x, mean, std))
        pixels = self._policy.decode(x)
        return {"latents": latents, "likelihoods": likelihoods, "conditioning": conditioning, "pixels": pixels}

    def _velocity(self, x: Tensor, step: int, conditioning: dict[str, Tensor]) -> Tensor:
        both = {k: torch.cat([self._empty[k].expand(v.shape), v]) for k, v in conditioning.items()}
        timestep = self._sigmas[step].expand(2 * len(x)) * 1000
        out = self._net(hidden_states=torch.cat([x, x]), timestep=timestep, **both, return_dict=False)[0]
        without, with_prompt = out.float().chunk(2)
        return without + 4.5 * (with_prompt - without)

    def _transition(self, x: Tensor, velocity: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of a step of Flow-GRPO's SDE (arXiv 2505.05470, eq. 9) at noise level 0.7."""
        sigma, following = self._sigmas[step], self._sigmas[step + 1]
        spread = 0.7 * torch.sqrt(sigma / (1 - torch.where(sigma == 1, self._sigmas[1], sigma)))
        dt = following - sigma
        correction = spread**2 / (2 * sigma)
        mean = x * (1 + correction * dt) + velocity * (1 + correction * (1 - sigma)) * dt
        return mean, spread * torch.sqrt(-dt)

    def _score(self, pixels: Tensor) -> Tensor:
        from guardlit.rewards.jpeg import JPEGCompressibility
        from guardlit.types import RewardRequest

        scorer = JPEGCompressibility()
        return scorer.score(RewardRequest(pixels, [""] * len(pixels), [{}] * len(pixels))).values

    def _update(self, batch: dict[str, Any], advantage: Tensor, last: bool) -> None:
        for step in range(self._steps - 1):
            x, after = batch["latents"][step], batch["latents"][step + 1]
            with measure.precision(self._bench.kind, self._precision):
                velocity = self._velocity(x, step, batch["conditioning"])
            mean, std = self._transition(x, velocity, step)
            ratio = torch.exp(_log_probability(after, mean, std) - batch["likelihoods"][step])
            loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - 1e-4, 1 + 1e-4)).mean()
            if not math.isfinite(loss.item()):  # logged in every step
                raise NotMeasuredError("the loss is not finite")
            self._scaler.scale(loss / (self._steps - 1)).backward()
        if last:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            self._optimizer.zero_grad()


def _log_probability(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Of a normal distribution, averaged over the elements, (B,)."""
    square = (x.detach() - mean) ** 2 / (2 * std**2)
    return (-square - torch.log(std) - math.log(math.sqrt(2 * math.pi))).flatten(1).mean(1)


STAGES = (Stage("usual", "against the usual loop", run, 75, ROWS),)
