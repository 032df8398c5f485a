"""Rebuild a bundled tiny world: `python -m guardlit.tiny_world.build` for the digits, `... build words` for the signs.

It trains the parts of a world on its data, and writes folders below OUT, each with an about.json that records command,
versions and measurements: `digits/build.py` and `words/build.py` say which.

The digits take about ten minutes on two free cores, the words fourteen. On busy cores, OMP_NUM_THREADS=1 is much
faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from guardlit.tiny_world.digits import build as digits
from guardlit.tiny_world.words import build as words

BUNDLED = Path(str(files("guardlit.assets")))
"""The folder of the bundled files."""

WORLDS: dict[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {
    "digits": (digits.build, digits.SCALES),
    "words": (words.build, words.SCALES),
}


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=WORLDS, nargs="?", default="digits", help="(default: digits)")
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder to write (default: the package's assets)")
    parser.add_argument("--scale", choices=("full", "small"), default="full", help="small: for a test, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build, scales = WORLDS[arguments.world]
    build(arguments.out, scales[arguments.scale], arguments.seed)


if __name__ == "__main__":
    main()
