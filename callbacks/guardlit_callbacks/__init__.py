"""Lightning callbacks that monitor policy-gradient training of generative models.

Callbacks are imported on first use, so that a report needs neither torch nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from guardlit_callbacks.composite import Interval, bootstrap, composite

if TYPE_CHECKING:
    from guardlit_callbacks.distributed.sync_ddp import SyncDDP
    from guardlit_callbacks.drift_sentinels import DriftSentinels
    from guardlit_callbacks.gold_score import GoldScore
    from guardlit_callbacks.gradient_norm import GradientNorm
    from guardlit_callbacks.gradient_spikes import GradientSpikes
    from guardlit_callbacks.kl_from_base import KLFromBase, gaussian_step_kl
    from guardlit_callbacks.over_optimization_stop import OverOptimizationStop
    from guardlit_callbacks.phase_timer import PhaseTimer
    from guardlit_callbacks.ratio_distribution import RatioDistribution
    from guardlit_callbacks.sample_grid import SampleGrid
    from guardlit_callbacks.trainable_ema import TrainableEMA

    __version__: str

__all__ = [
    "DriftSentinels",
    "GoldScore",
    "GradientNorm",
    "GradientSpikes",
    "Interval",
    "KLFromBase",
    "OverOptimizationStop",
    "PhaseTimer",
    "RatioDistribution",
    "SampleGrid",
    "SyncDDP",
    "TrainableEMA",
    "bootstrap",
    "composite",
    "gaussian_step_kl",
]

_MODULES = {
    "DriftSentinels": "drift_sentinels",
    "GoldScore": "gold_score",
    "GradientNorm": "gradient_norm",
    "GradientSpikes": "gradient_spikes",
    "KLFromBase": "kl_from_base",
    "OverOptimizationStop": "over_optimization_stop",
    "PhaseTimer": "phase_timer",
    "RatioDistribution": "ratio_distribution",
    "SampleGrid": "sample_grid",
    "SyncDDP": "distributed.sync_ddp",
    "TrainableEMA": "trainable_ema",
    "gaussian_step_kl": "kl_from_base",
}


def __getattr__(name: str) -> Any:
    """Imports all callbacks on first use: command lines find short class names among loaded classes."""
    if name == "__version__":
        from importlib.metadata import version

        return version("guardlit-callbacks")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for callback, module in _MODULES.items():
        globals()[callback] = getattr(import_module(f"{__name__}.{module}"), callback)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
