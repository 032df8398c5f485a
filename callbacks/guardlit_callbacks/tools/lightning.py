"""Lightning's classes, from whichever of its two packages the program uses.

`lightning.pytorch` and `pytorch_lightning` ship the same code as different classes, and each one's command line refuses
the other's callbacks. So the callbacks derive from the package that the program has already imported.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn


def _package() -> str:
    if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
        return "pytorch_lightning"
    return "lightning.pytorch" if find_spec("lightning") else "pytorch_lightning"


PACKAGE = _package()
"""`lightning.pytorch` or `pytorch_lightning`."""

if not TYPE_CHECKING:
    _root, _rank_zero = import_module(PACKAGE), import_module(f"{PACKAGE}.utilities.rank_zero")
    Callback, LightningModule, Trainer = _root.Callback, _root.LightningModule, _root.Trainer
    MisconfigurationException = import_module(f"{PACKAGE}.utilities.exceptions").MisconfigurationException
    rank_zero_info, rank_zero_only, rank_zero_warn = (
        _rank_zero.rank_zero_info,
        _rank_zero.rank_zero_only,
        _rank_zero.rank_zero_warn,
    )

__all__ = [
    "PACKAGE",
    "Callback",
    "LightningModule",
    "MisconfigurationException",
    "Trainer",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]
