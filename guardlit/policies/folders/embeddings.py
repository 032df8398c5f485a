"""Prompt embeddings, encoded once and cached in memory and on disk, by the content of prompt and encoders."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
import torch.distributed as dist
from guardlit_callbacks.distributed import gather_objects
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.files import atomic_write
from guardlit.types import Conditioning

CAPACITY = 1024
"""Prompts whose embeddings stay in memory when all are on disk."""
AT_ONCE = 16
"""Prompts of each rank whose embeddings, some megabytes each, go over the network at once."""


class EmbeddingCache:
    """Returns cached embeddings; only prompts in neither memory nor disk must be encoded.

    Args:
        key: names encoders and settings; entries of different keys are separate.
        folder: where entries are stored between runs, one file a prompt; None keeps them in memory only.
        capacity: entries held in memory; older ones are read from disk again. Without a folder all stay in memory.
        what: the entries are, for messages.
    """

    def __init__(
        self, key: str, folder: Path | None, capacity: int = CAPACITY, what: str = "prompt embeddings"
    ) -> None:
        self._key, self._what = key, what
        self._folder = folder
        self._capacity = capacity
        self._memory: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """The distinct prompts that are not cached."""
        return [p for p in dict.fromkeys(prompts) if p not in self._memory and self._read(p) is None]

    def add(self, prompts: Sequence[str], embeddings: Conditioning) -> None:
        """Cache the embeddings of P prompts, leading dimension P."""
        for i, prompt in enumerate(prompts):
            entry = {name: tensor[i].detach().cpu().clone() for name, tensor in embeddings.items()}
            self._write(prompt, entry)
            self._remember(prompt, entry)

    def get(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings of P prompts on the CPU, leading dimension P; raises `KeyError` for an uncached prompt."""
        entries = []
        for prompt in prompts:
            entries.append(entry := self._cached(prompt))
            self._remember(prompt, entry)
        return {name: torch.stack([e[name] for e in entries]) for name in entries[0]}

    def split_by_rank(self, prompts: Sequence[str]) -> list[list[str]]:
        """The prompts dealt to the ranks in turn, one list a rank."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        return [list(prompts[i::world]) for i in range(world)]

    def exchange(self, parts: Sequence[Sequence[str]]) -> None:
        """Send every rank the embeddings that it cannot read from its cache. Collective: every rank must call it.

        Args:
            parts: as `split_by_rank` gave them; each rank has encoded its own part.
        """
        asked = set(chain.from_iterable(gather_objects(self.missing(list(chain.from_iterable(parts))))))
        for start in range(0, max(map(len, parts)), AT_ONCE):
            mine = [prompt for prompt in parts[rank()][start : start + AT_ONCE] if prompt in asked]
            for entries in gather_objects({prompt: self._cached(prompt) for prompt in mine}) if asked else []:
                for prompt, entry in entries.items():
                    if self.missing([prompt]):
                        self._write(prompt, entry)
                        self._remember(prompt, entry)

    def _cached(self, prompt: str) -> dict[str, Tensor]:
        entry = self._memory.get(prompt) or self._read(prompt)
        if entry is None:
            raise KeyError(f"prompt was never encoded: {prompt!r}")
        return entry

    def _remember(self, prompt: str, entry: dict[str, Tensor]) -> None:
        self._memory[prompt] = entry
        self._memory.move_to_end(prompt)
        while self._folder is not None and len(self._memory) > self._capacity:
            self._memory.popitem(last=False)

    def _path(self, prompt: str) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(f"{self._key}\0{prompt}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def _read(self, prompt: str) -> dict[str, Tensor] | None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = self._path(prompt)
        if path is None or not path.is_file():
            return None
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError):
            return None  # a corrupt entry is encoded again

    def _write(self, prompt: str, entry: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        path = self._path(prompt)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, sync=False) as file:  # a corrupt entry is encoded again
                file.write(save(entry))
        except OSError as error:
            raise GuardlitError(
                f"{self._what} cannot be written to {self._folder}: {error.strerror}; set the policy's cache to "
                "another folder, or to null to keep them in memory"
            ) from error


def rank() -> int:
    """This process's rank, 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def cache_folder() -> Path:
    """`$GUARDLIT_CACHE`, or `guardlit` under the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GUARDLIT_CACHE") or Path(base) / "guardlit")


def embeddings_folder(cache: str | None, name: str = "embeddings") -> Path | None:
    """The folder of entries: `name` under `cache`, under `cache_folder` for `auto`, none for None."""
    if cache is None:
        return None
    return (cache_folder() if cache == "auto" else Path(cache)) / name
