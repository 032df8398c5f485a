"""What the second study compares: each method's objective, its clip range and its further options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.evidence.worlds import DIGITS, PUBLISHED_KL

AUTO, PER_STEP = "auto", "auto_per_step"
"""One range for all denoising steps, or one for each; both clip `ClipCalibration`'s fraction, 20 %."""
BASELINES = ("FlowGRPO", "GRPOGuard", "FlowGRPO_KL")
"""What every method is compared with; the last also keeps near the base, as those at the end of `METHODS` do."""
ONE_STEP = ("--model.rollout.window", json.dumps({"class_path": "RandomWindow", "init_args": {"length": 1}}))


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Attributes:
        objective: name of its class.
        clip_range: `AUTO` or `PER_STEP`.
        options: of `guardlit fit`, in addition.
        factor: CPU seconds of a round over those of Flow-GRPO, estimated.
    """

    objective: str
    clip_range: str = AUTO
    options: tuple[str, ...] = ()
    factor: float = 1.0


def _option(key: str, value: Any) -> tuple[str, str]:
    return f"--{key}", json.dumps(value)


DRAWINGS = "drawings"
"""Stands for the folder of the base model's drawings, which `study` draws for DDRL."""
_TERMS = [
    {"scorer": {"class_path": "DigitProbability"}},
    {"scorer": {"class_path": "DigitDiversity"}, "weight": 0},
]
# the published gate has two auxiliaries; here every other scorer is gold, but for the diversity, which is watched only
_GARDO = (
    *("--config", "methods/gardo"),
    *_option("model.reward", {"class_path": "Composite", "init_args": {"terms": _TERMS}}),
    *("--model.kl.gate.proxy", "digitprobability"),
    *_option("model.kl.gate.auxiliaries", ["digitdiversity"]),
    *_option("model.advantage", {"std": "none", "diversity": "digitprobability"}),
)

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "FlowGRPO": Method("FlowGRPO"),
        "GRPOGuard": Method("GRPOGuard"),
        "VelocityNorm": Method("VelocityNorm"),
        "FlowGRPO_even": Method("FlowGRPO", PER_STEP),
        "GRPOGuard_even": Method("GRPOGuard", PER_STEP),
        "VelocityNorm_even": Method("VelocityNorm", PER_STEP),
        "FlowDPPO": Method("FlowDPPO"),
        "FlashGRPO": Method("FlashGRPO", options=ONE_STEP, factor=0.4),
        "PCPO": Method("PCPO"),
        "FlowGRPO_KL": Method("FlowGRPO", options=PUBLISHED_KL, factor=1.25),
        "GARDO": Method("FlowGRPO", options=_GARDO, factor=1.25),
        "DiverseGRPO": Method("FlowGRPO", options=("--config", "methods/diverse_grpo"), factor=1.25),
        "DDRL": Method(
            "FlowGRPO", options=("--config", "methods/ddrl", "--model.data_loss.images", DRAWINGS), factor=1.25
        ),
    }
)
"""By name, in the order in which they are trained."""


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        name: of its documents and figures.
        config: of `guardlit fit`.
        methods: by name.
        seeds: of the runs; all methods of one come before the next.
        lr: learning rate of all.
        rounds: of each run.
        every: rounds between evaluations.
        compared: proxies between which gold is averaged.
        levels: at which gold is compared, by axis of the frontier.
    """

    name: str
    config: Path
    methods: Mapping[str, Method]
    seeds: tuple[int, ...]
    lr: float
    rounds: int
    every: int
    compared: tuple[float, float]
    levels: Mapping[str, tuple[float, ...]]


PLAN = Plan(
    name="objectives",
    config=DIGITS.config,
    methods=METHODS,
    seeds=(44, 45, 46),
    lr=2e-3,
    rounds=32,
    every=4,
    compared=(0.9, 0.95),
    levels={"proxy": (0.8, 0.9, 0.95), "step": (64, 128)},
)
"""32 rounds: with a fifth clipped, Flow-GRPO reaches a proxy of 0.95 by then (docs/evidence_digits.md, the sweep)."""

GOAL = 1.5
"""The largest clipped fraction of a step over the smallest that a range for each step is meant to keep."""
