"""The worker thread that computes scores."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from guardlit.rewards.base import Scorer
from guardlit.serving.messages import items_of
from guardlit.types import Prompt, RewardRequest, RewardResult

log = logging.getLogger("guardlit.serving")


@dataclass(frozen=True)
class Scores:
    """The scores of a request: items in the form of the protocol, and the scorer's provenance."""

    items: list[dict[str, Any]]
    provenance: Mapping[str, str]


@dataclass(eq=False)
class _Job:
    name: str
    request: RewardRequest
    scores: Future[Scores] = field(default_factory=Future)


class Worker:
    """Scores requests one after the other in one thread, since models are not thread-safe.

    A request's images are one batch, so its values equal those of the same call in the trainer's own process. With
    `merge`, waiting requests for the same scorer are batched: faster for many small ones, but values may differ in
    their last digits with the batch, and a scorer that compares images sees more of them.

    Args:
        scorers: by name, after `setup`.
        merge: largest batch in images, by scorer; for a scorer that is not named, every request is its own batch.
    """

    def __init__(self, scorers: Mapping[str, Scorer], merge: Mapping[str, int]) -> None:
        self.scorers, self._merge = scorers, merge
        self._pending: deque[_Job] = deque()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "scorer")

    def submit(self, name: str, request: RewardRequest) -> Future[Scores]:
        """Queue a request; canceling the future before its turn removes the request."""
        job = _Job(name, request)
        with self._lock:
            self._pending.append(job)
        self._thread.submit(self._turn)
        return job.scores

    def close(self) -> None:
        """Finish the current batch, cancel waiting requests, and close the scorers."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for scorer in self.scorers.values():
            scorer.close()

    def _turn(self) -> None:
        """Score the oldest request and those that can be batched with it; their own turns then do nothing."""
        jobs = self._take()
        if not jobs:
            return
        if len(jobs) > 1:
            try:
                for job, scores in zip(jobs, self._score_batch(jobs), strict=True):
                    job.scores.set_result(scores)
                return
            except Exception:  # the faulty request fails again when each is scored alone
                log.warning("%s: a batch of %d requests failed; scoring each alone", jobs[0].name, len(jobs))
        for job in jobs:
            job.scores.set_result(self._score(job.name, job.request))

    def _take(self) -> list[_Job]:
        taken: list[_Job] = []
        room = 0
        with self._lock:
            for job in list(self._pending):
                size = len(job.request)
                if taken and not (self._same_batch(taken[0], job) and size <= room):
                    continue
                self._pending.remove(job)
                if job.scores.set_running_or_notify_cancel():
                    room = (room if taken else self._merge.get(job.name, 0)) - size
                    taken.append(job)
        return taken

    @staticmethod
    def _same_batch(one: _Job, other: _Job) -> bool:
        return one.name == other.name and one.request.images.shape[1:] == other.request.images.shape[1:]

    def _score_batch(self, jobs: list[_Job]) -> list[Scores]:
        images = torch.cat([job.request.images for job in jobs])
        prompts = [prompt for job in jobs for prompt in job.request.prompts]
        metadata = [entry for job in jobs for entry in job.request.metadata]
        batch = self._request(jobs[0].name, RewardRequest(images, prompts, metadata))
        rest = iter(batch.items)
        return [Scores([next(rest) for _ in job.request.prompts], batch.provenance) for job in jobs]

    def _score(self, name: str, request: RewardRequest) -> Scores:
        try:
            return self._request(name, request)
        except Exception as error:
            log.exception("scorer %s failed on a request of %d images", name, len(request))
            what = " ".join(f"{type(error).__name__}: {error}".split())
            return Scores([{"error": what}] * len(request), self.scorers[name].provenance)

    def _request(self, name: str, request: RewardRequest) -> Scores:
        """Score the images with valid prompts; the items of the others hold the errors of their prompts."""
        scorer = self.scorers[name]
        errors = {}
        for index, (prompt, metadata) in enumerate(zip(request.prompts, request.metadata, strict=True)):
            if why := scorer.refusal(Prompt(prompt, metadata)):
                errors[index] = why
        good = [index for index in range(len(request)) if index not in errors]
        if not good:
            return Scores([{"error": error} for error in errors.values()], scorer.provenance)
        result = scorer.checked(request if not errors else request.take(good))
        return Scores(items_of(_spread(result, good, len(request)), errors), scorer.provenance)


def _spread(result: RewardResult, rows: list[int], count: int) -> RewardResult:
    """The result of some of `count` images as a result of all; NaN for the others."""

    def spread(column: Tensor) -> Tensor:
        out = torch.full((count,), torch.nan)
        out[rows] = column.float().cpu()
        return out

    details = {name: spread(column) for name, column in result.details.items()}
    values = spread(torch.where(result.valid, result.values, torch.nan))
    return RewardResult.from_values(values, details=details, reason=result.reason)
