"""Heartbeats and the first error reach every rank; missing ranks are named."""

from __future__ import annotations

import os
import time

import pytest
import torch.distributed as dist

from guardlit.processes.rank_store import Heartbeat, RankStore, missing_ranks


@pytest.fixture
def ranks() -> list[RankStore]:
    """Three ranks of one store."""
    store = dist.HashStore()
    return [RankStore(store, rank, 3) for rank in range(3)]


def test_a_rank_reads_the_heartbeats_of_the_others(ranks: list[RankStore]):
    for rank, store in enumerate(ranks):
        store.beat(rank, f"rollout {rank} of 20|with a bar")
    found = ranks[1].heartbeats()
    assert {rank: beat[1:] for rank, beat in found.items()} == {
        0: (0, "rollout 0 of 20|with a bar"),
        2: (2, "rollout 2 of 20|with a bar"),
    }
    ranks[0].beat(0, "rollout 0 of 20")
    again = ranks[1].heartbeats()
    assert again[0].clock != found[0].clock
    assert again[2].clock == found[2].clock


def test_the_first_error_wins_and_every_rank_reads_it(ranks: list[RankStore]):
    assert [store.first_error() for store in ranks] == ["", "", ""]
    assert ranks[2].publish("rank 2: the wires are cut") == "rank 2: the wires are cut"
    assert ranks[0].publish("rank 0: connection closed") == "rank 2: the wires are cut"
    assert {store.first_error() for store in ranks} == {"rank 2: the wires are cut"}


def test_the_host_of_the_store_waits_until_the_others_have_read(ranks: list[RankStore], monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        ranks[len(slept)].first_error()  # rank 1 reads, then rank 2

    monkeypatch.setattr(time, "sleep", sleep)
    ranks[0].publish("rank 0: an error")
    ranks[0].wait_for_readers(60)
    assert len(slept) == 2


def test_a_rank_that_published_an_error_needs_no_wait(ranks: list[RankStore], monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    for store in ranks[1:]:
        store.publish("an error")
    ranks[0].wait_for_readers(60)


def test_only_the_host_waits(ranks: list[RankStore], monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    ranks[1].wait_for_readers(60)
    ranks[0].wait_for_readers(0)  # its time is up
    monkeypatch.setitem(os.environ, "TORCHELASTIC_USE_AGENT_STORE", "True")  # torchrun's agent hosts it
    ranks[0].wait_for_readers(60)


BEFORE = {rank: Heartbeat(100, 7, "update 3 of 16") for rank in (1, 2, 3)}


def test_missing_ranks_are_the_dead_then_the_silent_then_the_slowest():
    now = {
        1: Heartbeat(101, 9, "update 5 of 16"),
        2: Heartbeat(100, 8, "update 4 of 16"),
        3: Heartbeat(101, 9, "update 5 of 16"),
    }
    assert missing_ranks(BEFORE, now, [3]) == "rank 3, last at update 5 of 16, is dead, stopped or disconnected"
    assert missing_ranks(BEFORE, now, []) == "rank 2, last at update 4 of 16, is dead, stopped or disconnected"
    now[2] = Heartbeat(101, 8, "update 4 of 16")
    assert missing_ranks(BEFORE, now, []) == "rank 2, last at update 4 of 16, is furthest behind"
    now[1] = now[2]
    both = "rank 1, last at update 4 of 16, rank 2, last at update 4 of 16, is furthest behind"
    assert missing_ranks(BEFORE, now, []) == both
