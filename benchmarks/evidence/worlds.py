"""What is compared: the methods, and for each world the grid, the seeds, the rounds and the conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]

PUBLISHED_KL = ("--model.kl.weight", "0.04", "--model.kl.kind", "flow_grpo")
"""Flow-GRPO's beta for verifiable rewards (`configs/sd35_ocr_flow_grpo.yaml`). It multiplies a mean over latent
elements, as the ratio is one, so that it carries over to latents of another size."""


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Attributes:
        objective: of Table 2. The sweep is of objectives: methods of one objective share its best setting.
        options: of `guardlit fit`, in addition.
    """

    objective: str
    options: tuple[str, ...] = ()


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "FlowGRPO": Method("FlowGRPO"),
        "GRPOGuard": Method("GRPOGuard"),
        "RatioNorm": Method("RatioNorm"),
        "MeanRevised": Method("MeanRevised"),
        "GuardReweight": Method("GuardReweight"),
        "TempFlowGRPO": Method("TempFlowGRPO"),
        "FlowGRPO_KL": Method("FlowGRPO", PUBLISHED_KL),
    }
)
"""By name, the two that the paper compares first."""

PAIR = ("FlowGRPO", "GRPOGuard")
"""What the conditions and the short version compare."""


@dataclass(frozen=True, order=True)
class Setting:
    """A point of the grid.

    Attributes:
        lr: learning rate.
        clipped: fraction of the off-policy transitions that the clip range shall clip, as measured before.
    """

    lr: float
    clipped: float

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"lr_{self.lr:g}_clipped_{self.clipped:g}"


@dataclass(frozen=True)
class World:
    """A configuration that trains on a CPU, and what is run on it.

    Attributes:
        name: of its folder.
        config: of `guardlit fit`.
        gold: of `guardlit evaluate`; its first scorer is the proxy.
        learning_rates: of the grid.
        clipped: of the grid, see `Setting`.
        calibration_rounds: rounds whose log ratios place the clip ranges.
        sweep_rounds: rounds at each point of the grid. Where they are the final rounds, and the sweep's seeds the final
            ones, the runs of the best points are the final runs.
        compared: proxies between which the sweep compares gold: up to where gold falls, or has fallen, in a short run.
        levels: of the tables of the final runs and the conditions, by axis of the frontier.
        sweep_seeds: of the sweep; the first is that of calibrations.
        runoff_seeds: with which each objective's two best settings of the sweep are trained again; none of the others.
        final_rounds: rounds at each method's best setting.
        seeds: of the final runs.
        common: method -> settings at which it is trained for the final rounds with the final seeds, in addition to its
            best one, so that methods are compared at equal settings too.
        condition_rounds: rounds under each condition.
        condition_seeds: of those.
        every: rounds between evaluations.
        conditions: name -> options of `guardlit fit`.
        options: of `guardlit fit` for every run, such as those that keep it on one core.
        short: setting of each method in the short version.
        short_rounds: rounds of the short version.
        round_seconds: CPU seconds of a round with its part of the evaluations and of the reward's subprocesses, from
            short runs.
        start_seconds: CPU seconds until the first round, and of the first evaluation, from short runs.
    """

    name: str
    config: Path
    gold: Path
    learning_rates: tuple[float, ...]
    clipped: tuple[float, ...]
    calibration_rounds: int
    sweep_rounds: int
    compared: tuple[float, float]
    levels: Mapping[str, tuple[float, ...]]
    sweep_seeds: tuple[int, ...]
    runoff_seeds: tuple[int, ...]
    final_rounds: int
    seeds: tuple[int, ...]
    common: Mapping[str, tuple[Setting, ...]]
    condition_rounds: int
    condition_seeds: tuple[int, ...]
    every: int
    conditions: Mapping[str, tuple[str, ...]]
    short: Mapping[str, Setting]
    short_rounds: int
    round_seconds: float
    start_seconds: float
    options: tuple[str, ...] = ()

    @property
    def full_sweep(self) -> bool:
        """Whether the sweep's runs are as long as the final ones, with the same seeds."""
        return (self.sweep_rounds, self.sweep_seeds) == (self.final_rounds, self.seeds)

    @property
    def settings(self) -> list[Setting]:
        """The grid."""
        return [Setting(lr, clipped) for lr in self.learning_rates for clipped in self.clipped]


DIGITS = World(
    name="digits",
    config=ROOT / "configs/tiny_digits.yaml",
    gold=ROOT / "configs/gold_tiny.yaml",
    learning_rates=(1e-3, 2e-3, 4e-3),
    clipped=(0.05, 0.2, 0.5),
    calibration_rounds=4,
    sweep_rounds=32,
    compared=(0.9, 0.95),
    levels={"proxy": (0.8, 0.9, 0.95, 0.97, 0.98), "step": (80, 160, 320)},
    sweep_seeds=(7,),
    runoff_seeds=(8, 9),
    final_rounds=80,
    seeds=(44, 45, 46),
    common={
        "FlowGRPO": (Setting(2e-3, 0.5), Setting(1e-3, 0.2)),
        "GRPOGuard": (Setting(2e-3, 0.5), Setting(2e-3, 0.2)),
        "MeanRevised": (Setting(2e-3, 0.5),),
    },
    condition_rounds=48,
    condition_seeds=(44, 45),
    every=4,
    conditions={
        "updates_2": ("--data.updates_per_round", "2"),
        "updates_10": ("--data.updates_per_round", "10"),
        "noise_0.3": ("--model.sde.init_args.noise_level", "0.3"),
        "noise_1": ("--model.sde.init_args.noise_level", "1"),
        "group_32": ("--data.images_per_prompt", "32", "--data.prompts_per_round", "5"),
    },
    short={"FlowGRPO": Setting(2e-3, 0.2), "GRPOGuard": Setting(1e-3, 0.2)},
    short_rounds=48,
    round_seconds=3.7,
    start_seconds=14.0,
)

WORDS = World(
    name="words",
    config=ROOT / "configs/tiny_words.yaml",
    gold=ROOT / "configs/gold_words.yaml",
    learning_rates=(1.5e-3, 3e-3),
    clipped=(0.5,),  # the digits' best for most objectives
    calibration_rounds=4,
    sweep_rounds=40,
    compared=(0.58, 0.64),
    levels={"proxy": (0.6, 0.64, 0.68, 0.72), "step": (80, 160)},
    sweep_seeds=(44, 45, 46),
    runoff_seeds=(),
    final_rounds=40,
    seeds=(44, 45, 46),
    common={},  # the sweep's runs are final ones
    condition_rounds=28,
    condition_seeds=(44, 45),
    every=4,
    conditions={
        "updates_2": ("--data.updates_per_round", "2"),
        "updates_12": ("--data.updates_per_round", "12"),
        "noise_0.3": ("--model.sde.init_args.noise_level", "0.3"),
    },
    short={"FlowGRPO": Setting(2e-3, 0.2), "GRPOGuard": Setting(1e-3, 0.2)},
    short_rounds=40,
    round_seconds=10.4,
    start_seconds=20.0,
    # two characters make a coarse proxy: twice as many validation images as configured
    options=("--model.reward.init_args.workers", "1", "--data.val_images_per_prompt", "16"),
)

WORLDS = {world.name: world for world in (DIGITS, WORDS)}

OBJECTIVES = tuple(dict.fromkeys(method.objective for method in METHODS.values()))
"""What the sweep tunes."""
