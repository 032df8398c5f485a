"""Weights of scorers on disk: saying what is wrong with them, and naming them by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guardlit.errors import GuardlitError

_SINGLE = ("model.safetensors", "pytorch_model.bin")


def expanded(name: str) -> str:
    """A hub id or path with `~` filled in."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal: what the Hugging Face hub shows beside it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(name: str) -> str:
    """SHA-256 of the weights that transformers loads from a folder or hub id; of their digests, if there are shards."""
    from transformers.utils import cached_file

    def find(file: str) -> Path | None:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        return None if found is None else Path(found)

    for file in _SINGLE:
        if (single := find(file)) is not None:
            return sha256(single)
        if (index := find(f"{file}.index.json")) is not None:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            digests = "".join(sha256(path) for shard in shards if (path := find(shard)) is not None)
            return hashlib.sha256(digests.encode()).hexdigest()
    raise GuardlitError(f"{name}: holds none of {', '.join(_SINGLE)}")


def check_report(name: str, report: Mapping[str, Any], no_weights: frozenset[str] = frozenset()) -> None:
    """Refuse a folder whose file does not hold exactly a network's weights.

    Without it transformers only warns, and leaves missing weights random.

    Args:
        name: of the folder, for the message.
        report: what `from_pretrained(..., output_loading_info=True)` says.
        no_weights: keys that old files may hold beside the weights, such as buffers.

    Raises:
        GuardlitError: naming what is missing, unexpected or of another shape.
    """
    wrong = {
        "missing": set(report["missing_keys"]),
        "unexpected": set(report["unexpected_keys"]) - no_weights,
        "of wrong shape": {key for key, *_ in report["mismatched_keys"]},
    }
    for problem, keys in wrong.items():
        if keys:
            first = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
            raise GuardlitError(
                f"{name}: {len(keys)} weights {problem} ({first}); the file must hold exactly the weights of the "
                f"model that its config.json describes"
            )


@contextmanager
def one_line(name: str, kind: str) -> Iterator[None]:
    """Turn whatever a library raises over a folder, file or hub id into one line that says what would be right.

    Args:
        name: folder, file or hub id that is being read.
        kind: what it must be, e.g. "CLIP folder".
    """
    try:
        yield
    except GuardlitError:
        raise
    except Exception as error:  # OSError, SafetensorError, UnpicklingError, JSON and key errors, ...
        if Path(name).exists():
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise GuardlitError(f"{name}: not a readable {kind} ({reason})") from error
        if name.startswith(("/", ".")):
            raise GuardlitError(f"there is no {Path(name).absolute()}; a {kind} is needed here") from error
        raise GuardlitError(
            f"{name}: neither here nor in the Hugging Face cache, and the hub is out of reach or lacks it; "
            f"run `hf download {name}` on a machine that is online, or name a local {kind}"
        ) from error
