"""Whether a checkpoint on disk is intact or corrupt.

A checkpoint is a file that `torch.save` wrote, or a folder of shards that torch.distributed.checkpoint wrote, with
Lightning's `meta.pt` and, written last, a manifest.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from guardlit.checkpoints.manifest import MANIFEST, META, digests, read_manifest

_INDEX = ".metadata"  # torch's, pickled
_DIRECTORY = 0x10  # of a zip record's DOS attributes


def find_corruption(path: Path, files: slice = slice(None)) -> str | None:
    """What is wrong with a checkpoint; None if it is intact and can be read without running code from it.

    `torch.load` verifies no checksum: one flipped bit gives another weight and no error. The archive does hold a CRC-32
    of every record, which is verified here: 3 to 4 GB/s, less than half of the time that loading takes. Of a folder
    every file is compared with the manifest.

    Args:
        path: a file, or a folder of shards.
        files: of a folder, those to read, where several ranks divide them.
    """
    try:
        if not path.is_dir():
            return _archive_corruption(path)
        if (found := _folder_corruption(path, files)) is None:
            _check_index(path / _INDEX)
            load_metadata(path)
        return found
    except Exception as error:  # zip, zlib, struct, pickle, torch and the system: each means that it is corrupt
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        return str(reason).splitlines()[0][:160]


def load_metadata(path: Path) -> dict[str, Any]:
    """A checkpoint with its tensors on the meta device: quick, whatever its size."""
    content = torch.load(path / META if path.is_dir() else path, map_location="meta", weights_only=True)
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, not a checkpoint")
    return content


def _archive_corruption(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        if any(record.external_attr & _DIRECTORY for record in archive.infolist()):
            return "a record is marked as a folder"  # torch would take uninitialized memory for its content
        if (record := archive.testzip()) is not None:
            return f"the checksum of its record {record} is wrong"
    torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # finds every record, and reads no numbers
    return None


def _folder_corruption(folder: Path, files: slice) -> str | None:
    if not (folder / MANIFEST).is_file():
        return f"incomplete: it has no {MANIFEST}, which is written last"
    expected = read_manifest(folder)
    if missing := sorted({META, _INDEX, *expected} - {p.name for p in folder.iterdir()}):
        return f"incomplete: {missing[0]} is missing"
    found = digests(folder, names=sorted(expected)[files])
    wrong = next((name for name in found if found[name] != expected[name]), None)
    return wrong and f"the checksum of {wrong} is wrong"


class _Index(pickle.Unpickler):
    """Reads a folder's index, for which torch calls plain `pickle.load`, and allows only the classes of an index."""

    NAMES: Mapping[str, tuple[str, ...]] = {
        "torch.distributed.checkpoint.metadata": (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
            *("TensorStorageMetadata", "ChunkStorageMetadata", "BytesStorageMetadata"),
        ),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.serialization": ("_get_layout",),
        "torch": ("Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))),
        "collections": ("OrderedDict",),
        "pathlib": ("PosixPath",),
        "pathlib._local": ("PosixPath",),
    }

    def find_class(self, module: str, name: str) -> Any:
        """A class that an index may hold; raises `UnpicklingError` for any other."""
        if name in self.NAMES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its {_INDEX} asks for {module}.{name}, and code in a checkpoint is not run")


def _check_index(path: Path) -> None:
    with path.open("rb") as file:
        _Index(file).load()
