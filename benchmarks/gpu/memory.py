"""Peak memory of each preset in configs/gpu by phase, against `guardlit plan`; and the cost of micro-batches."""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks.gpu import measure
from benchmarks.gpu.models import policy_of
from benchmarks.gpu.runs import done, fit, real_arguments, sizes
from benchmarks.gpu.stage import Bench, Stage, reason

PRESETS = (("sd35", "24gb"), ("sd35", "48gb"), ("sd35", "80gb"), ("flux", "48gb"), ("flux", "80gb"))
PHASES = ("rollout", "training")
MICRO_BATCHES = (1, 4, 9, 18, 36)
MODES = ("training", "rollout", "training with checkpointing")
"""The last one stays switched on."""


def presets(bench: Bench) -> None:
    """A short round of each preset at its batch sizes; both numbers hold the short round's trajectories."""
    chosen = PRESETS[:1] if bench.rehearse else PRESETS
    for family, preset in chosen:
        try:
            _preset(bench, family, preset)
        except Exception as error:
            for phase in PHASES:
                bench.missing(f"peak, {family} with {preset}.yaml, {phase}: plan / measured", reason(error))


def _preset(bench: Bench, family: str, preset: str) -> None:
    more = bench.size(_cut(preset), sizes(4, 2, 2, 2, 1, 3))
    if family == "flux":
        more = [*more, "--model.policy.init_args.weights_dtype=bf16"]
    arguments = real_arguments(bench, family, more, preset)
    planned = _planned(bench, f"plan_{family}_{preset}", arguments)
    last = fit(bench, f"memory_{family}_{preset}", family, arguments, limit=bench.size(60, 300))["rounds"][-1]
    for phase, measured in (("rollout", "peak_rollout"), ("training", "peak_update")):
        name = f"peak, {family} with {preset}.yaml, {phase}: plan / measured"
        if measured not in last:
            bench.missing(name, f"the CPU counts no peak; the plan says {planned[phase] / 1e9:.2f} GB")
            continue
        note = f"{planned[phase] / 1e9:.2f} GB / {last[measured] / 1e9:.2f} GB; random weights, JPEG as the proxy"
        bench.row(name, planned[phase] / last[measured], "", note)


def _cut(preset: str) -> list[str]:
    """Images of one rollout batch, two updates, two trained steps; the preset's own batch sizes stay."""
    rows = {"24gb": 8, "48gb": 8, "80gb": 16}[preset]
    more = ["--trainer.max_epochs=1", "--model.rollout.num_inference_steps=3"]
    return [f"--data.prompts_per_round={rows // 4}", "--data.images_per_prompt=4", "--data.updates_per_round=2", *more]


def _planned(bench: Bench, name: str, arguments: list[str]) -> dict[str, int]:
    """Bytes of each phase by `guardlit plan`, from a process without a device."""
    out = bench.folder / f"{name}.json"

    def work() -> None:
        from guardlit.commands.plan import planned
        from guardlit.planning.estimate import estimate

        out.write_text(json.dumps(estimate(planned(arguments)).memory.phases))

    done(bench, name, work, bench.size(60, 300))
    phases: dict[str, int] = json.loads(out.read_text())
    return {phase: next(size for key, size in phases.items() if key.startswith(phase)) for phase in PHASES}


def sweep(bench: Bench) -> None:
    """Micro-batches of SD3.5-M's architecture under guidance: seconds a transition, and the peak."""
    with policy_of(bench.folder / "sd35", "sd35", bench.kind, bench.rehearse) as policy:
        for mode in MODES:
            if mode == MODES[-1]:
                policy.transformer.enable_gradient_checkpointing()
            for rows in MICRO_BATCHES[: bench.size(None, 1)]:
                name = f"micro-batch {rows}, {mode}"
                bench.trying(
                    name, lambda rows=rows, mode=mode, name=name: _micro_batch(bench, policy, rows, mode, name)
                )
                if bench.kind == "cuda":
                    torch.cuda.empty_cache()


def _micro_batch(bench: Bench, policy: Any, rows: int, mode: str, name: str) -> None:
    latents = torch.randn(rows, *policy.latent_shape, device=bench.kind)
    sigma = torch.full((rows,), 0.7, device=bench.kind)
    conditioning = policy.conditioning(["a cat"] * rows)
    trained = [p for p in policy.parameters() if p.requires_grad]

    def call() -> None:
        half = "fp16" if bench.kind == "cuda" else "fp32"
        with measure.precision(bench.kind, half), torch.set_grad_enabled(mode != "rollout"):
            velocity = policy.velocity(latents, sigma, conditioning, 4.5)
        if mode != "rollout":
            torch.autograd.grad(velocity.square().mean(), trained)

    took = measure.seconds(bench.kind, call, repeats=bench.size(3, 1))
    bytes_ = measure.peak(bench.kind, call)
    note = f"peak {bytes_ / 1e9:.2f} GB" if bytes_ else "the CPU counts no peak"
    bench.row(name, 1000 * took / rows, "ms a transition", f"float16 autocast, guidance; {note}")


STAGES = (
    Stage(
        "memory",
        "peaks of the presets against the plan",
        presets,
        100,
        tuple(f"peak, {f} with {p}.yaml, {phase}: plan / measured" for f, p in PRESETS for phase in PHASES),
    ),
    Stage(
        "sweep",
        "micro-batches: time and peak",
        sweep,
        60,
        tuple(f"micro-batch {rows}, {mode}" for mode in MODES for rows in MICRO_BATCHES),
    ),
)
