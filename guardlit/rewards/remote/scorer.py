"""Scores from a server: images are sent without loss, and any reply other than finite numbers is a failure."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.rewards.remote.base import ClientScorer
from guardlit.rewards.remote.client import Call, Limits
from guardlit.rewards.remote.wire import (
    MSGPACK,
    PROTOCOL,
    Answer,
    ImageFormat,
    pack,
    read_answer,
    score_message,
    unpack,
)
from guardlit.types import RewardRequest, RewardResult


class ServedScorer(ClientScorer):
    """A scorer on a server; a subclass writes `call`.

    Args:
        url: http or https address of the server.
        chunk: images per call, at most; null sends a request in one call.
        limits: time-outs, attempts and concurrency.
        token_env: name of the environment variable with the server's bearer token; null sends none.
    """

    def __init__(self, url: str, chunk: int | None, limits: Limits, token_env: str | None) -> None:
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk={chunk} of the reward server {url} must be at least 1")
        super().__init__(url, limits, token_env)
        self.chunk = chunk

    @abstractmethod
    def call(self, request: RewardRequest) -> Call[Answer]:
        """The call that scores B images; does not raise, and encodes `request` only when the call starts."""

    def score(self, request: RewardRequest) -> RewardResult:
        """Score B images: values (B,) in order, NaN where the server did not give a number in time."""
        size = self.chunk or max(len(request), 1)
        request = RewardRequest(request.images.cpu(), request.prompts, request.metadata)
        parts = [request.take(range(i, min(i + size, len(request)))) for i in range(0, len(request), size)]
        outcomes = self.client.map([self.call(part) for part in parts])
        answers = [
            self._checked(outcome.value) if outcome.value is not None else Answer.failed(len(part), str(outcome.error))
            for part, outcome in zip(parts, outcomes, strict=True)
        ]
        names = dict.fromkeys(name for answer in answers for name in answer.details)
        details = {name: _joined([a.details.get(name, torch.full_like(a.values, torch.nan)) for a in answers])
                   for name in names}  # fmt: skip
        reason = next((f"{self.url}: {answer.reason}" for answer in answers if answer.reason), "")
        values = _joined([answer.values for answer in answers])
        return RewardResult.from_values(values, details=details, provenance=self.provenance, reason=reason)

    def _checked(self, answer: Answer) -> Answer:
        """The answer, unless it comes from another scorer than the one at the start of the run."""
        return answer


def _joined(columns: list[Tensor]) -> Tensor:
    return torch.cat(columns) if columns else torch.empty(0)


class RemoteReward(ServedScorer):
    """A scorer behind `guardlit serve-reward`.

    On equal machines its values equal those of the same scorer in this process, bit for bit, if a request is one batch:
    `chunk` here and `merge` at the server change the batches, and so the last digits.

    Args:
        url: address of the server, such as http://127.0.0.1:8765.
        scorer: name of the scorer on the server; null if the server has only one.
        expect: entries of the scorer's provenance, such as `weights_sha256`, that are checked before anything is drawn.
        images: format of the images, both without loss.
        chunk: images per call, at most; null sends a request in one call.
        limits: time-outs, attempts and concurrency.
        token_env: name of the environment variable with the server's bearer token; null sends none.
    """

    def __init__(
        self,
        url: str,
        scorer: str | None = None,
        expect: dict[str, str] | None = None,
        images: ImageFormat = "raw",
        chunk: int | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        token_env: str | None = None,
    ) -> None:
        super().__init__(url, chunk, limits, token_env)
        self.scorer, self.expect, self.images = scorer, expect or {}, images
        self.name = scorer or self.name
        self._provenance: Mapping[str, str] = {"scorer": self.name}

    @property
    def provenance(self) -> Mapping[str, str]:
        """Of the served scorer."""
        return self._provenance

    def check_server(self) -> None:
        """Check that the server is healthy and has the expected scorer; raises `GuardlitError` otherwise."""
        self.client.ask(Call("GET", "/healthz", json.loads))
        self._provenance = self._find(self.client.ask(Call("GET", "/info", _read_info)))
        for key, wanted in self.expect.items():
            if (found := self._provenance.get(key)) != wanted:
                said = (
                    f"has {key}={found}" if found is not None else f"tells {', '.join(self._provenance)}, but no {key}"
                )
                raise GuardlitError(f"{self.url}: scorer '{self.name}' {said}; this run expects {key}={wanted}")

    def _find(self, served: Mapping[str, Mapping[str, str]]) -> Mapping[str, str]:
        if self.scorer is None and len(served) > 1:
            raise GuardlitError(f"{self.url} serves {', '.join(served)}: name one of them by `scorer`")
        if self.scorer is not None and self.scorer not in served:
            raise GuardlitError(f"{self.url} serves no '{self.scorer}'; there are {', '.join(served)}")
        return served[self.scorer or next(iter(served))]

    def call(self, request: RewardRequest) -> Call[Answer]:
        """One request of protocol 1."""

        def body() -> bytes:
            return pack(score_message(request, self.scorer, self.images))

        return Call("POST", "/v1/score", partial(_read, len(request)), body, MSGPACK)

    def _checked(self, answer: Answer) -> Answer:
        before, now = dict(self._provenance), dict(answer.provenance)
        if now == before:
            return answer
        other = next(key for key in before | now if before.get(key) != now.get(key))
        return Answer.failed(len(answer.values), f"the server scores with another {other} now than at the start")


def _read(count: int, body: bytes) -> Answer:
    return read_answer(unpack(body), count)


def _read_info(body: bytes) -> dict[str, dict[str, str]]:
    """Provenance by scorer."""
    info: Any = json.loads(body)
    if not isinstance(info, dict) or info.get("protocol") != PROTOCOL:
        raise ValueError(f"this is no server of protocol {PROTOCOL}")
    scorers = {str(name): dict(scorer["provenance"]) for name, scorer in info["scorers"].items()}
    if not scorers:
        raise ValueError("it serves no scorer")
    return scorers
