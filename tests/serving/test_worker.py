"""The worker: batches, failures and canceled requests."""

from __future__ import annotations

import torch
from served import Gate, pixels

from guardlit.serving.worker import Worker
from guardlit.types import RewardRequest, RewardResult


def _submit(worker: Worker, batches: list[torch.Tensor], prompts: list[str]) -> list:
    """Queue the first batch, and the others while it is scored."""
    futures = []
    for batch, prompt in zip(batches, prompts, strict=True):
        futures.append(worker.submit("gate", RewardRequest(batch, [prompt] * len(batch), [{}] * len(batch))))
        assert worker.scorers["gate"].entered.wait(30)
    return futures


def test_merge_batches_waiting_requests():
    gate = Gate()
    worker = Worker({"gate": gate}, {"gate": 6})
    batches = [pixels(2, 16 if k == 3 else 8, seed=k) for k in range(7)]
    futures = _submit(worker, batches, ["a cat"] * 7)
    gate.opened.set()
    for batch, future in zip(batches, futures, strict=True):
        assert [item["value"] for item in future.result().items] == batch.float().mean((1, 2, 3)).tolist()
    assert gate.batches == [2, 6, 2, 4]  # the first alone; then batches of at most 6 in order; the other size alone
    worker.close()


def test_a_request_that_fails_does_not_fail_its_batch():
    gate = Gate()
    worker = Worker({"gate": gate}, {"gate": 100})
    batches = [pixels(2, seed=k) for k in range(4)]
    futures = _submit(worker, batches, ["a cat", "a cat", "poison", "a dog"])
    gate.opened.set()
    for batch, future in zip(batches, futures, strict=True):
        values = [item.get("value") for item in future.result().items]
        assert values == ([None, None] if future is futures[2] else batch.float().mean((1, 2, 3)).tolist())
    worker.close()


def test_a_cancelled_request_is_not_scored():
    gate = Gate()
    worker = Worker({"gate": gate}, {})
    futures = _submit(worker, [pixels(1), pixels(2), pixels(3)], ["a cat"] * 3)
    assert futures[1].cancel()
    gate.opened.set()
    assert len(futures[2].result().items) == 3
    assert gate.batches == [1, 3]
    worker.close()


def test_too_few_values_fail_the_request():
    class Short(Gate):
        def score(self, request: RewardRequest) -> RewardResult:
            return self.result(torch.ones(1))

    worker = Worker({"short": Short()}, {})
    items = worker.submit("short", RewardRequest(pixels(3), ["a"] * 3, [{}] * 3)).result().items
    assert len(items) == 3
    for item in items:
        assert item["error"].startswith(
            "GuardlitError: reward 'short': score() returned a Tensor of shape (1,) for 3 im"
        )
    worker.close()
