"""What a built folder says of itself: about.json."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def write_about(out: Path, world: dict[str, Any], packages: tuple[str, ...], measured: dict[str, Any]) -> None:
    """Write `out/about.json`: facts of the world, versions of packages, measurements."""
    about = {**world, "versions": {package: version(package) for package in packages}, "measured": measured}
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def report(part: str, started: float, measured: dict[str, Any]) -> None:
    """Print the measurements of a part, and the seconds since `started` (`time.monotonic`)."""
    print(f"{part} after {time.monotonic() - started:.0f} s: {json.dumps(measured, indent=2)}", flush=True)
