"""Lightning callbacks that watch policy-gradient training of generative models."""

from guardlit_callbacks.composite import Interval, bootstrap, composite
from guardlit_callbacks.trainable_ema import TrainableEMA

__version__ = "0.1.0"

__all__ = [
    "Interval",
    "TrainableEMA",
    "bootstrap",
    "composite",
]
