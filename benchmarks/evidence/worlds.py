"""What is compared: the methods, and for each world the grid, the seeds, the rounds and the conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
        objective: of Table 2.
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
class Sweep:
    """A first look at a grid of settings, with one seed.

    Attributes:
        learning_rates: of the grid.
        clipped: of the grid, see `Setting`.
        rounds: at each point.
        seed: none of the others.
        compared: proxies between which gold is compared.
    """

    learning_rates: tuple[float, ...]
    clipped: tuple[float, ...]
    rounds: int
    seed: int
    compared: tuple[float, float]

    @property
    def settings(self) -> list[Setting]:
        """The grid."""
        return [Setting(lr, clipped) for lr in self.learning_rates for clipped in self.clipped]


@dataclass(frozen=True)
class World:
    """A configuration that trains on a CPU, and what is run on it.

    Attributes:
        name: of its folder.
        config: of `guardlit fit`.
        gold: of `guardlit evaluate`; its first scorer is the proxy.
        calibration_rounds: rounds whose log ratios place the clip ranges.
        calibration_seed: of those.
        sweep: None for none.
        reference: the setting at which all objectives are compared, and the pair under each condition.
        settings: method -> settings at which it is trained; all but a penalized method have the reference.
        rounds: of those runs.
        longer: method -> its rounds, where they are more.
        seeds: of those runs.
        compared: proxies between which they are compared: up to where gold has fallen.
        levels: of the tables, by axis of the frontier.
        condition_rounds: rounds under each condition.
        condition_seeds: of those.
        every: rounds between evaluations.
        conditions: name -> options of `guardlit fit`.
        options: of `guardlit fit` for every run, such as those that keep it on one core.
        short_rounds: rounds of the short version.
        round_seconds: CPU seconds of a round with its part of the evaluations and of the reward's subprocesses, from
            short runs.
        start_seconds: CPU seconds until the first round, and of the first evaluation, from short runs.
    """

    name: str
    config: Path
    gold: Path
    calibration_rounds: int
    calibration_seed: int
    sweep: Sweep | None
    reference: Setting
    settings: Mapping[str, tuple[Setting, ...]]
    rounds: int
    seeds: tuple[int, ...]
    compared: tuple[float, float]
    levels: Mapping[str, tuple[float, ...]]
    condition_rounds: int
    condition_seeds: tuple[int, ...]
    every: int
    conditions: Mapping[str, tuple[str, ...]]
    short_rounds: int
    round_seconds: float
    start_seconds: float
    options: tuple[str, ...] = ()
    longer: Mapping[str, int] = field(default_factory=dict)

    def rounds_of(self, method: str) -> int:
        """Of its runs at each setting."""
        return self.longer.get(method, self.rounds)

    def learning_rates(self, objective: str) -> list[float]:
        """Those at which an objective is trained."""
        own = [s for name, settings in self.settings.items() if METHODS[name].objective == objective for s in settings]
        return sorted({setting.lr for setting in (*own, *(self.sweep.settings if self.sweep else ()))})

    @property
    def clipped(self) -> list[float]:
        """All clip fractions that are trained with."""
        own = [setting for settings in self.settings.values() for setting in settings]
        return sorted({setting.clipped for setting in (*own, *(self.sweep.settings if self.sweep else ()))})


HALF, FIFTH = Setting(2e-3, 0.5), Setting(2e-3, 0.2)
"""The learning rate of the configurations, with a tight and with a loose clip."""

DIGITS = World(
    name="digits",
    config=ROOT / "configs/tiny_digits.yaml",
    gold=ROOT / "configs/gold_tiny.yaml",
    calibration_rounds=4,
    calibration_seed=7,
    sweep=Sweep(learning_rates=(1e-3, 2e-3, 4e-3), clipped=(0.05, 0.2, 0.5), rounds=32, seed=7, compared=(0.9, 0.95)),
    reference=HALF,
    settings={
        **dict.fromkeys(PAIR, (HALF, FIFTH, Setting(1e-3, 0.2))),
        "RatioNorm": (HALF,),
        "MeanRevised": (HALF, FIFTH),
        "GuardReweight": (HALF,),
        "TempFlowGRPO": (HALF,),
        "FlowGRPO_KL": (FIFTH,),
    },
    rounds=80,
    seeds=(44, 45, 46),
    compared=(0.9, 0.98),
    levels={"proxy": (0.8, 0.9, 0.95, 0.97, 0.98), "step": (80, 160, 320)},
    condition_rounds=48,
    condition_seeds=(44, 45),
    every=4,
    conditions={
        "updates_10": ("--data.updates_per_round", "10"),
        "noise_0.3": ("--model.sde.init_args.noise_level", "0.3"),
        "noise_1": ("--model.sde.init_args.noise_level", "1"),
    },
    short_rounds=48,
    round_seconds=3.7,
    start_seconds=14.0,
)

WORDS = World(
    name="words",
    config=ROOT / "configs/tiny_words.yaml",
    gold=ROOT / "configs/gold_words.yaml",
    calibration_rounds=4,
    calibration_seed=7,
    sweep=None,
    reference=HALF,
    settings={**dict.fromkeys(METHODS, (HALF,)), **dict.fromkeys(PAIR, (HALF, FIFTH))},
    rounds=40,
    longer={"FlowGRPO": 60},  # the slowest to raise the proxy, and compared with all others
    seeds=(44, 45, 46),
    compared=(0.58, 0.62),
    levels={"proxy": (0.58, 0.6, 0.62, 0.64, 0.66), "step": (80, 160)},
    condition_rounds=28,
    condition_seeds=(44, 45),
    every=4,
    conditions={},
    short_rounds=40,
    round_seconds=10.4,
    start_seconds=20.0,
    # two characters make a coarse proxy: twice as many validation images as configured
    options=("--model.reward.init_args.workers", "1", "--data.val_images_per_prompt", "16"),
)

WORLDS = {world.name: world for world in (DIGITS, WORDS)}

OBJECTIVES = tuple(dict.fromkeys(method.objective for method in METHODS.values()))
"""Those of Table 2."""
