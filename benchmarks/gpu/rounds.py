"""Rounds of the real loop: against bare calls of its network, with each option, and with other micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.measure import peak_rate
from benchmarks.gpu.runs import fit, real_arguments, sizes
from benchmarks.gpu.stage import Bench, Stage, reason

RANDOM = "random weights, JPEG size as the proxy"
POLICY = "--model.policy.init_args"


@dataclass(frozen=True)
class Option:
    """A setting whose effect is measured. A guardlit without it gives a row without a number.

    Attributes:
        name: in the table.
        arguments: of `fit`, on top of `sd35_pickscore` with `80gb.yaml`.
        rounds: how many; the last one counts, so that warm-up does not.
    """

    name: str
    arguments: tuple[str, ...]
    rounds: int = 1


MERGED = ("--model.rollout.merge=true", "--model.old_velocity=recomputed")
COMPILED = (f"{POLICY}.compile=blocks",)
OPTIONS = (
    Option("as shipped", (), rounds=2),
    Option("compile: blocks", COMPILED, rounds=2),
    Option("old_velocity: recomputed", ("--model.old_velocity=recomputed",)),
    Option("rollout.merge: true, old_velocity: recomputed", MERGED),
    Option("compile: blocks, merged, recomputed", (*COMPILED, *MERGED), rounds=2),
    Option("old_velocity: stored", ("--model.old_velocity=stored",)),
    Option("rollout.merge: false", ("--model.rollout.merge=false",)),
    Option("float32 weights under autocast", (f"{POLICY}.weights_dtype=fp32",)),
    Option("trajectories on the host", ("--model.rollout.trajectories=host",)),
    Option("decode_dtype: fp16", (f"{POLICY}.decode_dtype=fp16",)),
    Option("attention_backend: _native_cudnn", (f"{POLICY}.attention_backend=_native_cudnn",)),
    Option("micro_batch: auto", ("--data.micro_batch=auto",), rounds=2),
    Option("gradient checkpointing", (f"{POLICY}.gradient_checkpointing=true",)),
    Option("trainer.deterministic: true", ("--trainer.deterministic=true",)),
    Option("trainer.tf32: true", ("--trainer.tf32=true",)),
    Option("quantization: nf4", (f"{POLICY}.quantization=nf4",)),
    Option("quantization: int8", (f"{POLICY}.quantization=int8",)),
    Option("vae_device: cpu", (f"{POLICY}.vae_device=cpu",)),
    Option("as shipped, again", (), rounds=2),
)
"""By importance: the last options are not measured when time runs out."""


def round_(bench: Bench) -> None:
    """The real loop of SD3.5-M's architecture: two rounds, each followed by bare calls of the network in its shapes."""
    cut = bench.size(sizes(18, 9, 9, 9, 2, 10), sizes(4, 2, 2, 2, 1, 3))
    arguments = real_arguments(bench, "sd35", [*cut, f"--trainer.callbacks.bare={bench.size(3, 1)}"])
    rounds = fit(bench, "round", "sd35", arguments)["rounds"]
    last = rounds[-1]
    bare = {phase: last[f"bare_{phase}"] for phase in ("rollout", "update")}
    note = f"{last['images']} images at 512 px, 10 steps, 9 trained; {RANDOM}"
    for phase, bare_seconds in bare.items():
        took = last[phase]
        bench.row(f"{phase}: bare calls / real", bare_seconds / took, "", f"{took:.2f} s; round {len(rounds)}; {note}")
        bench.row(f"{phase}: fraction inside the model", last[f"model_{phase}"] / took, "", note)
    whole = last["rollout"] + last["update"]
    bench.row("round: bare calls / real", sum(bare.values()) / whole, "", f"{whole:.2f} s")
    bench.row("first round: bare calls / real", _total_ratio(rounds[0]), "", "warm-up included")
    bench.row("images per second", last["images"] / whole, "1/s", note)
    _utilization(bench, arguments, last, whole)


def _total_ratio(one: dict[str, Any]) -> float:
    return float((one["bare_rollout"] + one["bare_update"]) / (one["rollout"] + one["update"]))


def _utilization(bench: Bench, arguments: Sequence[str], last: dict[str, Any], whole: float) -> None:
    """TFLOP/s by the closed form of docs/recipes.md, against the device's peak rates."""
    from benchmarks.recipes import cost, trained_steps
    from guardlit.commands.lightning_cli import settings_of

    if bench.rehearse:
        bench.missing("TFLOP/s by the closed form", "a rehearsal has another network")
        return
    settings = settings_of(["fit", *arguments])
    counted = cost(settings, trained_steps(settings["model"]["rollout"]))
    rate = last["images"] * (counted.rollout + counted.training) / whole
    bench.row("TFLOP/s by the closed form", rate, "TFLOP/s", f"{counted.rollout + counted.training:.0f} TFLOP an image")
    ceiling = bench.known.get("matrix product, bf16")
    if ceiling:
        bench.row("fraction of the measured bf16 ceiling", rate / ceiling, "", f"of {ceiling:.0f} TFLOP/s")
    peak = peak_rate(bench.device)
    if peak:
        bench.row("fraction of the data sheet's bf16 peak", rate / peak, "", f"of {peak:.0f} TFLOP/s")


def options(bench: Bench) -> None:
    """A short round with each option, the shipped settings first and last."""
    chosen = OPTIONS if not bench.rehearse else (OPTIONS[0], OPTIONS[2])
    cut = bench.size(sizes(18, 9, 9, 9, 1, 4), sizes(4, 2, 2, 2, 1, 3))
    base: dict[str, Any] = {}
    for number, option in enumerate(chosen):
        try:
            arguments = real_arguments(
                bench, "sd35", [*cut, f"--trainer.max_epochs={option.rounds}", *option.arguments]
            )
            last = fit(bench, f"option_{number}", "sd35", arguments, limit=bench.size(60, 300))["rounds"][-1]
        except Exception as error:
            bench.missing(f"option: {option.name}", _why(reason(error)))
            continue
        base = base or last
        whole, before = last["rollout"] + last["update"], base["rollout"] + base["update"]
        ratios = {phase: base[phase] / last[phase] for phase in ("rollout", "update")}
        note = f"{whole:.2f} s; rollout {ratios['rollout']:.3f}, update {ratios['update']:.3f}"
        peaks = max(last.get("peak_rollout", 0), last.get("peak_update", 0)) / 1e9
        note += f"; peak {peaks:.1f} GB" if peaks else ""
        bench.row(f"option: {option.name}", before / whole, "x as shipped", note)


def _why(text: str) -> str:
    """The reason, in guardlit's words where jsonargparse reports an unknown option."""
    unknown = ("not accepted", "Unrecognized", "unrecognized", "does not accept", "no option", "unknown key", "Unknown")
    return f"not available here: {text}" if any(word in text for word in unknown) else text


STAGES = (
    Stage(
        "round",
        "the real loop against bare calls",
        round_,
        75,
        (
            *(f"{p}: bare calls / real" for p in ("rollout", "update", "round", "first round")),
            *(f"{p}: fraction inside the model" for p in ("rollout", "update")),
            "images per second",
            "TFLOP/s by the closed form",
            "fraction of the measured bf16 ceiling",
            "fraction of the data sheet's bf16 peak",
        ),
    ),
    Stage("options", "each option on and off", options, 170, tuple(f"option: {o.name}" for o in OPTIONS)),
)
