"""Whether a checkpoint's weights are finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guardlit.checkpoints.shards import read_shards


def finite_weights(path: Path) -> bool:
    """Whether a checkpoint's weights can be read and hold neither NaN nor infinity."""
    try:
        if path.is_dir():
            state: dict[str, Any] = read_shards(path)["state_dict"]
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    except Exception:  # a file that cannot be read for any reason is none to resume from
        return False
    return all(bool(t.isfinite().all()) for t in state.values() if isinstance(t, Tensor) and t.is_floating_point())
