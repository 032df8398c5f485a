"""The fault campaign: kills at random moments, and faults one by one; `python -m benchmarks.faults --help`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is first imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/support"))  # the tiny model folders and scorers
