"""The CPU cores that this process may use."""

from __future__ import annotations

import os


def available_cores() -> int:
    """Cores that this process may use: those of its affinity, or the machine's where there is none, as on macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
