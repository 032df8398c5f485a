"""Scores of images, kept by content: the same image, prompt and scorer are never scored twice."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Dataset

from guardlit.gold.drawing import as_it_is
from guardlit.gold.pictures import Picture
from guardlit.rewards.base import Scorer
from guardlit.training.run_folder import versions
from guardlit.types import RewardRequest

BATCH = 64
"""Images of a request, unless a scorer compares all images of a prompt."""


class ScoreCache:
    """Scores by key in one SQLite file, which several processes may write.

    Every entry has a checksum. A corrupt file is moved away.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self) -> None:
        """Move a corrupt file away; rank 0 calls it before the other ranks read."""
        try:
            with self._open() as database:
                (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        except sqlite3.DatabaseError as error:
            moved = self._path.with_suffix(".corrupt")
            print(f"{self._path} is corrupt ({error}): moved to {moved.name}, scored again", file=sys.stderr)
            self._path.replace(moved)

    def get(self, keys: Sequence[str]) -> dict[str, float]:
        """The cached scores, by key, without corrupt entries."""
        found = {}
        with self._open() as database:
            for key in dict.fromkeys(keys):
                row = database.execute("SELECT value, seal FROM scores WHERE key = ?", (key,)).fetchone()
                if row is not None and isinstance(row[0], float) and row[1] == _seal(key, row[0]):
                    found[key] = row[0]
        return found

    def put(self, scores: Mapping[str, float]) -> None:
        """Write scores, in one transaction."""
        rows = [(key, value, _seal(key, value)) for key, value in scores.items()]
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=600)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, value REAL, seal TEXT)")
            yield database


def _seal(key: str, value: float) -> str:
    return hashlib.blake2b(f"{key}{value.hex()}".encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Task:
    """One request to one scorer.

    Attributes:
        column: of the scorer.
        keys: of the scores in the cache, one an image.
        pictures: the images.
    """

    column: str
    keys: list[str]
    pictures: list[Picture]


class Scoring(pl.LightningModule):
    """Scores what the cache lacks, distributed over the ranks of a `Trainer.predict`.

    A failed score is not cached. A scorer that fails on every image of a request gets no further request.

    Args:
        scorers: by column.
        sets: images of every model; image i is of prompt i % `prompts`.
        prompts: how many there are.
        cache: of the scores.
    """

    def __init__(
        self, scorers: Mapping[str, Scorer], sets: Sequence[Sequence[Picture]], prompts: int, cache: ScoreCache
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer requests than ranks
        self._scorers, self._sets, self._prompts, self._cache = dict(scorers), sets, prompts, cache
        self._given_up: set[str] = set()
        self.keys: dict[str, list[list[str]]] = {}
        """The scores' keys in the cache, by column and model, one an image."""
        self.asked = 0
        """Number of scores that the cache lacked, on all ranks."""

    def configure_model(self) -> None:
        """Do nothing: the only networks are the scorers', which are hidden from Lightning."""

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The requests of this rank. Scorers are loaded here, since a key holds their provenance."""
        tasks = []
        for column, scorer in self._scorers.items():
            scorer.setup(self.device)
            tasks += self._tasks(column, scorer)
        self.asked = sum(len(task.keys) for task in tasks)
        self.trainer.strategy.barrier()  # every rank has read before one writes
        if not tasks:
            return []
        mine = tasks[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(cast("Dataset[Any]", mine), batch_size=None, collate_fn=as_it_is)

    def _tasks(self, column: str, scorer: Scorer) -> list[Task]:
        identity = [type(scorer).__module__, type(scorer).__qualname__, dict(scorer.provenance), versions()["guardlit"]]
        self.keys[column] = []
        todo: dict[str, list[tuple[str, Picture]]] = {}
        for pictures in self._sets:
            keys = [""] * len(pictures)
            groups = self._prompts if scorer.compares_images else len(pictures)
            for group in (range(first, len(pictures), groups) for first in range(groups)):
                members = [pictures[row] for row in group]
                group_key = _key(identity, [p.sha256 for p in members], members[0])
                for place, row in enumerate(group):
                    keys[row] = f"{group_key}.{place}"
                todo.setdefault(group_key, [(keys[row], pictures[row]) for row in group])
            self.keys[column].append(keys)
        known = self._cache.get([key for keys in self.keys[column] for key in keys])
        missing = [group for group in todo.values() if any(key not in known for key, _ in group)]
        if not scorer.compares_images:
            images = [image for group in missing for image in group]
            missing = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        return [Task(column, [key for key, _ in group], [picture for _, picture in group]) for group in missing]

    def predict_step(self, task: Task, batch_idx: int) -> int:
        """Score one request and cache what did not fail."""
        if task.column in self._given_up:
            return 0
        images = torch.stack([picture.read() for picture in task.pictures]).to(self.device)
        prompts = [picture.prompt for picture in task.pictures]
        request = RewardRequest(images, [p.text for p in prompts], [p.metadata for p in prompts])
        with torch.autocast(self.device.type, enabled=False):
            result = self._scorers[task.column].checked(request)
        rows = zip(task.keys, result.values.tolist(), result.valid.tolist(), strict=True)
        scores = {key: value for key, value, valid in rows if valid}
        self._cache.put(scores)
        if not scores:
            self._given_up.add(task.column)
        return len(scores)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Requests have no device until their images are read."""
        return batch


def _key(identity: Any, images: Sequence[str], picture: Picture) -> str:
    document = [identity, images, picture.prompt.text, dict(picture.prompt.metadata)]
    return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()
