"""GRPO-Guard for text-to-image flow models, on PyTorch Lightning."""

__version__ = "0.1.0"
