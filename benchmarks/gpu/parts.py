"""Times the rest of a round: scoring, decoding, noise, embeddings; and lists the kernels of the network."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import measure
from benchmarks.gpu.models import policy_of, randomize
from benchmarks.gpu.stage import Bench, NotMeasuredError, Stage

VIT_H = {
    "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
    "projection_dim": 1024,
}
TINY_TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PARTS = ("PickScore's network, fp32", "PickScore's network, fp16")
DECODING = ("decoding, float32", "decoding, bf16", "decoding, bf16: largest error", "decoding, bf16: mean error")
REST = ("noise of 16 samples, 512 px", "noise of 16 samples, 512 px, copied", "embeddings of 16 prompts from memory")


def run(bench: Bench) -> None:
    """Time each part alone, at the published sizes."""
    for name in PARTS:
        bench.trying(name, lambda name=name: _scorer(bench, name))
    with policy_of(bench.folder / "sd35", "sd35", bench.kind, bench.rehearse) as policy:
        _decoding(bench, policy)
        _noise(bench, policy)


def _scorer(bench: Bench, name: str) -> None:
    """CLIP ViT-H/14 with random weights, on preprocessed images."""
    from transformers import CLIPConfig, CLIPModel

    tiny = {"text_config": TINY_TOWER, "vision_config": {**TINY_TOWER, "patch_size": 14}, "projection_dim": 16}
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig(**bench.size(VIT_H, tiny)))
    dtype = torch.float16 if name.endswith("fp16") and bench.kind == "cuda" else torch.float32
    model = randomize(model.to_empty(device=bench.kind).to(dtype)).eval()
    rows = bench.size(16, 2)
    pixels = torch.randn(rows, 3, 224, 224, device=bench.kind, dtype=dtype)
    tokens = torch.randint(0, 1000, (rows, 77), device=bench.kind)

    @torch.no_grad()
    def call() -> None:
        model(input_ids=tokens, pixel_values=pixels)

    took = measure.seconds(bench.kind, call, bench.size(5, 1))
    bench.row(name, 1000 * took / rows, "ms an image", f"{rows} at once; without preparing images")


def _decoding(bench: Bench, policy: Any) -> None:
    """The policy's decoding, and the same network in bf16 with its error in gray levels."""
    rows = bench.size(8, 2)
    latents = torch.randn(rows, *policy.latent_shape, device=bench.kind)
    took = measure.seconds(bench.kind, lambda: policy.decode(latents), bench.size(3, 1))
    bytes_ = measure.peak(bench.kind, lambda: policy.decode(latents))
    bench.row(DECODING[0], 1000 * took / rows, "ms an image", f"{rows} images, peak {bytes_ / 1e9:.2f} GB")
    full = policy.decode(latents).float()
    vae = policy._outside["vae"]
    scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
    vae.to(torch.bfloat16)

    @torch.no_grad()
    def call() -> Tensor:
        return vae.decode(scaled.bfloat16(), return_dict=False)[0].float()

    took = measure.seconds(bench.kind, call, bench.size(3, 1))
    bench.row(DECODING[1], 1000 * took / rows, "ms an image", "all of the VAE's decoder in bf16")
    error = (((call() / 2 + 0.5).clamp(0, 1) * 255).round() - full).abs()
    bench.row(DECODING[2], error.max(), "gray levels", "random weights: weak evidence")
    bench.row(DECODING[3], error.mean(), "gray levels", "random weights: weak evidence")
    vae.to(torch.float32)


def _noise(bench: Bench, policy: Any) -> None:
    from guardlit.rounds.noise import NoiseSource

    shape = bench.size((16, 64, 64), (16, 8, 8))
    noise = NoiseSource(0, 0, shape)
    took = measure.seconds("cpu", lambda: noise.draw(range(16), 3), 5)
    bench.row(REST[0], 1000 * took, "ms", "drawn on the CPU, one thread")
    took = measure.seconds(bench.kind, lambda: noise.draw(range(16), 3).to(bench.kind), 5)
    bench.row(REST[1], 1000 * took, "ms", "drawn, copied from pageable memory, synchronized")
    prompts = [f"prompt {i}" for i in range(16)]
    policy.conditioning(prompts)
    took = measure.seconds(bench.kind, lambda: policy.conditioning(prompts), bench.size(3, 1))
    bench.row(REST[2], 1000 * took, "ms", "stacked and copied; drawing random embeddings included")


# which kernels --------------------------------------------------------------------------------------------------------


def profile(bench: Bench) -> None:
    """Three denoising steps and three micro-batches of SD3.5-M's architecture: top kernels, and idle gaps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.kind == "cuda" else [])]
    with policy_of(bench.folder / "sd35", "sd35", bench.kind, bench.rehearse) as policy:
        for phase in ("rollout", "training"):
            work = _work(bench, policy, phase)
            work()
            measure.wait(bench.kind)
            with profiled(activities=activities) as found:
                for _ in range(bench.size(3, 1)):
                    work()
                measure.wait(bench.kind)
            _summarize(bench, phase, found)


def _work(bench: Bench, policy: Any, phase: str) -> Any:
    rows = bench.size(9, 2)
    latents = torch.randn(rows, *policy.latent_shape, device=bench.kind)
    sigma = torch.full((rows,), 0.7, device=bench.kind)
    conditioning = policy.conditioning(["a cat"] * rows)

    def work() -> None:
        name = "fp16" if bench.kind == "cuda" else "fp32"
        with measure.precision(bench.kind, name), torch.set_grad_enabled(phase == "training"):
            velocity = policy.velocity(latents, sigma, conditioning, 4.5)
        if phase == "training":
            velocity.square().mean().backward()

    return work


def _summarize(bench: Bench, phase: str, found: Any) -> None:
    """The ten longest kernels, and the fraction of the time between first and last in which none ran."""
    on_gpu = torch.autograd.DeviceType.CUDA
    wanted = on_gpu if bench.kind == "cuda" else torch.autograd.DeviceType.CPU
    events = [e for e in found.events() if e.device_type == wanted and (bench.kind == "cuda" or not e.cpu_children)]
    if not events:
        raise NotMeasuredError("the profiler saw no kernel")
    totals: dict[str, list[float]] = defaultdict(list)
    for event in events:
        totals[event.name].append(event.time_range.elapsed_us())
    busy = sum(map(sum, totals.values()))
    for name, times in sorted(totals.items(), key=lambda item: -sum(item[1]))[:10]:
        note = f"{len(times)} kernels, {sum(times) / 1000:.2f} ms"
        bench.row(f"{phase}: kernel {name[:90]}", sum(times) / busy, "fraction of kernel time", note)
    span, covered = _covered([(e.time_range.start, e.time_range.end) for e in events])
    bench.row(f"{phase}: idle", 1 - covered / span, "fraction", f"of {span / 1000:.1f} ms, {len(events)} kernels")


def _covered(spans: list[tuple[float, float]]) -> tuple[float, float]:
    """Length from the first beginning to the last end, and how much of it lies in some span."""
    spans = sorted(spans)
    covered, reached = 0.0, spans[0][0]
    for begin, end in spans:
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return reached - spans[0][0], covered


STAGES = (
    Stage(
        "profile",
        "kernels and idle gaps",
        profile,
        40,
        tuple(f"{p}: {w}" for p in ("rollout", "training") for w in ("idle", "kernel")),
    ),
    Stage("parts", "scoring, decoding, noise, embeddings", run, 45, (*PARTS, *DECODING, *REST)),
)
