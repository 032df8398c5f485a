"""How exported weights are sampled, in a file next to them, where the weights alone do not say it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from guardlit.errors import GuardlitError
from guardlit.rounds.settings import Sampling

FILE = "sampling.json"


def write_sampling(folder: Path, sampling: Sampling) -> None:
    """Write `sampling.json` if the base model takes the last steps; otherwise remove that of an earlier export.

    Args:
        folder: of the exported weights.
        sampling: that the run validates with.
    """
    file = folder / FILE
    if sampling.base_steps:
        file.write_text(json.dumps(asdict(sampling), indent=1) + "\n", encoding="utf-8")
    else:
        file.unlink(missing_ok=True)


def read_sampling(place: Path) -> Sampling | None:
    """What `write_sampling` wrote; None where there is no such file.

    Args:
        place: the folder of exported weights, or one of its files.

    Raises:
        GuardlitError: a file that holds something else.
    """
    file = (place if place.is_dir() else place.parent) / FILE
    if not file.is_file():
        return None
    try:
        return Sampling(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, GuardlitError) as error:
        raise GuardlitError(f"{file} does not say how to sample ({error}): export again, or remove it") from error
