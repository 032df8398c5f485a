"""Lightning callbacks that watch policy-gradient training of generative models."""

__version__ = "0.1.0"
