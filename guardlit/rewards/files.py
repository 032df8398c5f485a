"""Files with scorers' weights: finding, hashing, reading and checking them."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guardlit.errors import GuardlitError, hub_refusal
from guardlit.files import sha256

_SINGLE = ("model.safetensors", "pytorch_model.bin")


def expanded(name: str) -> str:
    """A hub id or path with `~` filled in."""
    return str(Path(name).expanduser()) if name.startswith("~") else name


def folder_sha256(name: str) -> str:
    """SHA-256 of the weights that transformers loads from a folder or hub id; for shards, of their digests."""
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


def find_file(name: str, file: str, kind: str) -> Path:
    """A file of weights: `name` itself, or else `file` in the folder or hub repository of that name.

    Raises:
        GuardlitError: the file cannot be found or downloaded.
    """
    from transformers.utils import cached_file

    path = Path(expanded(name))
    if path.is_file():
        return path
    with file_errors(str(path) if path.exists() else name, kind, file):
        return Path(cached_file(str(path) if path.exists() else name, file))


def read_tensors(path: Path) -> dict[str, Any]:
    """Tensors of a safetensors file or of a `torch.save` file; code in the latter is never run.

    Raises:
        GuardlitError: the file cannot be read, or its pickle needs more than tensors and plain containers.
    """
    from safetensors.torch import load_file

    with file_errors(str(path), "file of weights"):
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except (pickle.UnpicklingError, EOFError, LookupError) as error:
            named = re.search(r"GLOBAL (\S+)", str(error))
            if named is None:
                raise GuardlitError(f"{path}: not a readable file of weights (corrupt, or of another kind)") from error
            raise GuardlitError(
                f"{path}: its pickle asks for {named[1]}, and code in a file of weights is not run here; if you trust "
                f"the file, convert it to safetensors once, as docs/rewards.md says"
            ) from error
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not named tensors")
        return content


@contextmanager
def without_weights() -> Iterator[None]:
    """Networks built in this context have buffers with values, but parameters on the meta device, for `fill` to set.

    The global random state stays as it is.
    """
    from accelerate import init_empty_weights

    with torch.random.fork_rng(devices=[]), init_empty_weights():
        yield


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Assign a file's tensors to a network, without a copy; file and network must have the same keys and shapes.

    Args:
        network: built `without_weights`.
        tensors: by the keys of the network.
        path: of the file, for the message.

    Raises:
        GuardlitError: naming what is missing, unexpected or of another shape.
    """
    expected = network.state_dict()
    shapes = {key: tensor.shape for key, tensor in tensors.items() if isinstance(tensor, Tensor)}
    misshapen = {key for key in expected.keys() & shapes.keys() if expected[key].shape != shapes[key]}
    _refuse(path, expected.keys() - shapes.keys(), tensors.keys() - expected.keys(), misshapen, type(network).__name__)
    network.load_state_dict(tensors, assign=True)


def check_report(name: str, report: Mapping[str, Any], no_weights: frozenset[str] = frozenset()) -> None:
    """Refuse a folder whose file does not hold exactly a network's weights.

    Without this check transformers only warns, and leaves missing weights random.

    Args:
        name: of the folder, for the message.
        report: from `from_pretrained(..., output_loading_info=True)`.
        no_weights: keys that old files may hold in addition to the weights, such as buffers.

    Raises:
        GuardlitError: naming what is missing, unexpected or of another shape.
    """
    misshapen = {key for key, *_ in report["mismatched_keys"]}
    unexpected = set(report["unexpected_keys"]) - no_weights
    _refuse(name, set(report["missing_keys"]), unexpected, misshapen, "model that its config.json describes")


def _refuse(name: object, missing: Set[str], unexpected: Set[str], misshapen: Set[str], network: str) -> None:
    wrong = {"missing": missing, "unexpected": unexpected, "of wrong shape": misshapen}
    for problem, keys in wrong.items():
        if keys:
            first = ", ".join(sorted(keys)[:3]) + (", ..." if len(keys) > 3 else "")
            raise GuardlitError(
                f"{name}: {len(keys)} weights {problem} ({first}); the file must hold exactly the weights of the "
                f"{network}"
            )


@contextmanager
def file_errors(name: str, kind: str, file: str = "") -> Iterator[None]:
    """Turn any library error about a folder, file or hub id into one line that says what would be right.

    Args:
        name: folder, file or hub id that is being read.
        kind: what it must be, e.g. "CLIP folder".
        file: that is needed from a folder or hub id; all of them if left out.
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
        if refusal := hub_refusal(error, name):
            raise GuardlitError(f"{name}: {refusal}; or name a local {kind}") from error
        raise GuardlitError(
            f"{name}: neither here nor in the Hugging Face cache, and the hub cannot be reached or lacks it; "
            f"run `{' '.join(('hf download', name, file)).strip()}` on a machine that is online, or name a local {kind}"
        ) from error
