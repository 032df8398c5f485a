"""Floating-point dtypes, by the names that configurations give them."""

from __future__ import annotations

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOATS = tuple(DTYPES.values())
HALVES = (torch.bfloat16, torch.float16)
