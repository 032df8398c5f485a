"""The client of the public reward-server: plain numbers pass, and no pickle does anything."""

from __future__ import annotations

import io
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from remotes import CPU, QUICK, request
from servers import body_of, reply, thread

from guardlit.rewards import PickleReward
from guardlit.rewards.remote.pickle_protocol import DataUnpickler


class Pickled:
    """Answers with the bytes it is given, or with what it makes of the request."""

    def __init__(self, answer) -> None:
        self.answer, self.asked = answer, []

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            self.asked.append(pickle.loads(await body_of(receive)))
            made = self.answer(self.asked[-1]) if callable(self.answer) else self.answer
            await reply(send, 200, made if isinstance(made, bytes) else pickle.dumps(made))


def pickled(answer: object, count: int = 3, **settings: object):
    with thread(Pickled(answer)) as url:
        remote = PickleReward(url, **{"limits": QUICK} | settings)
        remote.setup(CPU)
        result = remote.score(request(count, 32))
        remote.close()
    return result


def test_the_public_reward_servers_protocol():
    def answer(asked: dict) -> dict:
        n = len(asked["images"])
        scores = [metadata["n"] / 8 for metadata in asked["meta_datas"]]
        groups = {"counting": [-10.0] * n}
        return {"scores": scores, "rewards": [0.0] * n, "strict_rewards": [1.0] * n, "group_rewards": groups}

    server = Pickled(answer)
    with thread(server) as url:
        remote = PickleReward(url, chunk=2, only_strict=False)
        remote.setup(CPU)
        result = remote.score(request(5, 32))
        remote.close()
    assert torch.equal(result.values, torch.arange(5) / 8)
    assert result.details.keys() == {"rewards", "strict_rewards"}
    assert sorted(len(asked["images"]) for asked in server.asked) == [1, 2, 2]
    first = next(asked for asked in server.asked if asked["meta_datas"][0]["n"] == 0)
    assert first["meta_datas"][1] == {"prompt": "a cat", "n": 1}
    assert first["prompts"] == ["a cat", "a cat"]
    assert first["only_strict"] is False
    assert first["images"][0].startswith(b"\xff\xd8\xff")
    assert result.provenance["images"] == "JPEG quality 75"


def test_deqas_answer_is_read_too():
    result = pickled({"outputs": [3.5, 4, 2.25]}, value="outputs")
    assert result.values.tolist() == [3.5, 4.0, 2.25]


class _Call:
    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


MARK = Path(f"/tmp/guardlit_pickle_{os.getpid()}")
REFUSED = {
    "os.system": {"scores": [_Call(os.system, f"touch {MARK}"), 0.0, 0.0]},
    "eval": {"scores": [0.0] * 3, "other": _Call(eval, f"open({str(MARK)!r}, 'w')")},
    "a class": {"scores": [0.0, Path("/"), 0.0]},
    "getattr": _Call(getattr, "x", "join"),
    "a numpy scalar": {"scores": [np.float64(1.0), 0.0, 0.0]},
    "a numpy array": {"scores": np.zeros(3)},
    "a tensor": {"scores": torch.zeros(3)},
    "a set": {"scores": {1.0, 2.0, 3.0}},
    "by name and text protocol": b"cos\nsystem\n(S'touch /tmp/x'\ntR.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a persistent object": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "nothing": b"",
    "cut short": pickle.dumps({"scores": [0.0] * 3})[:-4],
    "garbage": b"\x80\x05" + bytes(range(64)),
    "a length beyond the end": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f" + b"abc",
    "another length": {"scores": [0.0, 1.0]},
    "another list": {"outputs": [0.0, 1.0, 2.0]},
    "no dict": [0.0, 1.0, 2.0],
    "a text": {"scores": "012"},
    "odd numbers": {"scores": [math.nan, math.inf, "3"]},
    "truths": {"scores": [True, None, 1 + 0j]},
    "a number without end": {"scores": [10**400, 0.0, 1.0]},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_no_pickle_but_plain_numbers_becomes_a_score(kind: str):
    result = pickled(REFUSED[kind])
    assert not result.valid.any()
    assert result.values.isnan().all()
    assert result.reason
    assert not MARK.exists()


def test_the_attack_is_one():
    """What the tests above refuse does its harm where it is not refused."""
    try:
        pickle.loads(pickle.dumps(REFUSED["os.system"]))
        assert MARK.exists()
    finally:
        MARK.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["builtins.dict", "builtins.float", "collections.OrderedDict", "datetime.date"])
def test_not_even_a_harmless_name_is_looked_up(name: str):
    module, _, attribute = name.rpartition(".")
    with pytest.raises(pickle.UnpicklingError, match=f"asks for {name}, and plain data alone"):
        DataUnpickler(io.BytesIO(f"c{module}\n{attribute}\n.".encode())).load()


def test_a_reward_that_is_always_zero_is_refused():
    with pytest.raises(ValueError, match="unless only_strict is false"):
        PickleReward("http://127.0.0.1:1", "rewards")
