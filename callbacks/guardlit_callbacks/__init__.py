"""Lightning callbacks that watch policy-gradient training of generative models."""

from guardlit_callbacks.composite import Interval, bootstrap, composite
from guardlit_callbacks.drift_sentinels import DriftSentinels
from guardlit_callbacks.gold_score import GoldScore
from guardlit_callbacks.gradient_norm import GradientNorm
from guardlit_callbacks.over_optimization_stop import OverOptimizationStop
from guardlit_callbacks.phase_timer import PhaseTimer
from guardlit_callbacks.ratio_distribution import RatioDistribution
from guardlit_callbacks.sample_grid import SampleGrid
from guardlit_callbacks.sync_ddp import SyncDDP
from guardlit_callbacks.trainable_ema import TrainableEMA

__version__ = "0.1.0"

__all__ = [
    "DriftSentinels",
    "GoldScore",
    "GradientNorm",
    "Interval",
    "OverOptimizationStop",
    "PhaseTimer",
    "RatioDistribution",
    "SampleGrid",
    "SyncDDP",
    "TrainableEMA",
    "bootstrap",
    "composite",
]
