"""Checkpoints as folders, to which every rank writes its part of the weights and of the optimizer's state."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from guardlit_callbacks.distributed.gather import gather_objects
from torch import Tensor

from guardlit.checkpoints.manifest import META, digests, move_into_place, write_manifest

Key = tuple[str, ...]


def write_shards(checkpoint: dict[str, Any], path: Path, barrier: Callable[[], None]) -> None:
    """Write a folder atomically. Collective: every rank must call it.

    Args:
        checkpoint: as Lightning makes it, with sharded tensors under `state_dict` and `optimizer_states`.
        path: of the folder.
        barrier: waits for all ranks.
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    temporary = path.with_name(f".{path.name}.tmp")
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    barrier()
    sharded, rest = _split(checkpoint)
    save(sharded, checkpoint_id=temporary)
    own_files = [file.name for file in temporary.glob(f"__{dist.get_rank()}_*")]
    known = gather_objects(digests(temporary, own_files))
    if first:
        torch.save(rest, temporary / META)
        write_manifest(temporary, {name: digest for each in known for name, digest in each.items()})
        move_into_place(temporary, path)
    barrier()


def read_shards(path: Path, parameters: Mapping[str, Tensor] | None = None, device: str = "cpu") -> dict[str, Any]:
    """Read a folder as one checkpoint.

    Args:
        path: of the folder.
        parameters: by name; tensors are sharded as they are, and the call is collective. None reads full tensors.
        device: of full tensors; `meta` reads none.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    rest: dict[str, Any] = torch.load(path / META, map_location=device, weights_only=True)
    reader = FileSystemReader(path)
    sharded: dict[str, Tensor] = {}
    for name, stored in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)  # nothing else is written
        parameter = (parameters or {}).get(name.split("|")[1])
        if parameter is not None and parameter.shape == stored.size:
            sharded[name] = torch.empty_like(parameter, dtype=stored.properties.dtype, requires_grad=False)
        else:
            sharded[name] = torch.empty(stored.size, dtype=stored.properties.dtype, device=device)
    if device != "meta":
        load(sharded, storage_reader=reader, no_dist=parameters is None)
    return _join(sharded, rest)


def _split(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of weights and optimizers under flat names, and everything else."""
    sharded = {f"model|{name}": tensor for name, tensor in checkpoint["state_dict"].items()}
    states = []
    for number, optimizer in enumerate(checkpoint.get("optimizer_states", ())):
        plain: dict[str, dict[str, Any]] = {name: {} for name in optimizer["state"]}
        for name, key, value in _values(optimizer):
            if isinstance(value, Tensor):
                sharded[f"{number}|{name}|{key}"] = value
            else:
                plain[name][key] = value
        states.append({**optimizer, "state": plain})
    rest = {**checkpoint, "state_dict": {}}
    return sharded, rest | ({"optimizer_states": states} if "optimizer_states" in checkpoint else {})


def _values(optimizer: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for name, values in optimizer["state"].items():
        for key, value in values.items():
            yield name, key, value


def _join(sharded: Mapping[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    for flat, tensor in sharded.items():
        where, name, *key = flat.split("|")
        if where == "model":
            rest["state_dict"][name] = tensor
        else:
            rest["optimizer_states"][int(where)]["state"][name][key[0]] = tensor
    return rest
