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
"""Images in one request, unless a scorer needs all images of a prompt together."""


class ScoreCache:
    """Scores by key in one SQLite file: several processes may write, and what is written is whole.

    Every entry bears a digest of its own, and a file that is no database any more is put aside.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self) -> None:
        """Put a damaged file aside; one process does so before the others look."""
        try:
            with self._open() as database:
                (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        except sqlite3.DatabaseError as error:
            aside = self._path.with_suffix(".damaged")
            print(f"{self._path} is damaged ({error}): moved to {aside.name}, scored again", file=sys.stderr)
            self._path.replace(aside)

    def get(self, keys: Sequence[str]) -> dict[str, float]:
        """The scores that are there, by key; a damaged entry is not."""
        found = {}
        with self._open() as database:
            for key in dict.fromkeys(keys):
                row = database.execute("SELECT value, seal FROM scores WHERE key = ?", (key,)).fetchone()
                if row is not None and isinstance(row[0], float) and row[1] == _seal(key, row[0]):
                    found[key] = row[0]
        return found

    def put(self, scores: Mapping[str, float]) -> None:
        """Keep scores, all or none of them."""
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
    """Scores what the cache lacks, shared among the processes of a `Trainer.predict`.

    A failed score is not kept. A scorer that fails on every image of a request gets no further one.

    Args:
        scorers: by column.
        sets: images of every model; image i is of prompt i % `prompts`.
        prompts: how many there are.
        cache: where scores are kept.
    """

    def __init__(
        self, scorers: Mapping[str, Scorer], sets: Sequence[Sequence[Picture]], prompts: int, cache: ScoreCache
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer requests than processes
        self._scorers, self._sets, self._prompts, self._cache = dict(scorers), sets, prompts, cache
        self._given_up: set[str] = set()
        self.keys: dict[str, list[list[str]]] = {}
        """The scores' keys in the cache, by column and model, one an image."""
        self.asked = 0
        """Scores that the cache lacked, on all processes."""

    def configure_model(self) -> None:
        """Nothing: there is no network here but the scorers', which Lightning is not to see."""

    def predict_dataloader(self) -> DataLoader[Any] | list[Any]:
        """This process's share of the requests; the scorers are loaded here, for what they are is part of a key."""
        tasks = []
        for column, scorer in self._scorers.items():
            scorer.setup(self.device)
            tasks += self._tasks(column, scorer)
        self.asked = sum(len(task.keys) for task in tasks)
        self.trainer.strategy.barrier()  # all have looked before the first writes
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
                whole = _key(identity, [p.sha256 for p in members], members[0])
                for place, row in enumerate(group):
                    keys[row] = f"{whole}.{place}"
                todo.setdefault(whole, [(keys[row], pictures[row]) for row in group])
            self.keys[column].append(keys)
        known = self._cache.get([key for keys in self.keys[column] for key in keys])
        missing = [group for group in todo.values() if any(key not in known for key, _ in group)]
        if not scorer.compares_images:
            images = [image for group in missing for image in group]
            missing = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
        return [Task(column, [key for key, _ in group], [picture for _, picture in group]) for group in missing]

    def predict_step(self, task: Task, batch_idx: int) -> int:
        """Score one request and keep what did not fail."""
        if task.column in self._given_up:
            return 0
        images = torch.stack([picture.read() for picture in task.pictures]).to(self.device)
        prompts = [picture.prompt for picture in task.pictures]
        request = RewardRequest(images, [p.text for p in prompts], [p.metadata for p in prompts])
        with torch.autocast(self.device.type, enabled=False):
            result = self._scorers[task.column].score(request)
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
