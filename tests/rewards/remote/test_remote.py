"""The client of `guardlit serve-reward`: the served scorer's own numbers, and a word on what is wrong before a run."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from brightness import Brightness
from remotes import CPU, QUICK, ready, request, said_at_setup
from servers import serving

from guardlit.rewards import Composite, DigitProbability, RemoteReward, Term
from guardlit.rewards.remote.client import Limits
from guardlit.types import RewardRequest


@pytest.mark.parametrize("images", ["raw", "png"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_values_and_details_are_the_served_scorers_own_bit_for_bit(images: str, chunk: int | None):
    digits = DigitProbability()
    digits.setup(CPU)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
    asked = RewardRequest(drawn, [f"a handwritten {word}" for word in ("one", "two")] * 4, [{}] * 8)
    parts = [asked.take(range(i, min(i + (chunk or 8), 8))) for i in range(0, 8, chunk or 8)]
    expected = torch.cat([digits.score(part).values for part in parts])
    with serving({"digits": digits}) as url:
        remote = ready(url, images=images, chunk=chunk, expect={"weights_sha256": digits.provenance["weights_sha256"]})
        result = remote.score(asked)
        remote.close()
    assert torch.equal(result.values, expected)
    assert torch.equal(result.details["success"], digits.score(asked).details["success"])
    assert result.valid.all()
    assert (result.provenance, remote.provenance) == (digits.provenance, digits.provenance)


def test_scoring_does_not_change_the_global_random_state():
    with serving({"bright": Brightness()}) as url:
        remote = ready(url)
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        remote.score(request())
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())
        remote.close()


def test_a_term_that_failed_is_nan_beside_a_good_value():
    terms = [Term(Brightness(), name="good"), Term(Brightness("cat"), weight=0, name="bad")]
    with serving({"both": Composite(terms)}) as url:
        remote = ready(url)
        assert remote.name == "remotereward"
        result = remote.score(request())
        remote.close()
    assert result.valid.all()
    assert torch.equal(result.details["good"], result.values)
    assert result.details["bad"].isnan().all()


def test_one_failed_image_does_not_take_others_along():
    asked = request(4)
    asked.prompts[2] = "fail"
    with serving({"bright": Brightness("fail")}) as url:
        remote = ready(url)
        result = remote.score(asked)
        remote.close()
    assert result.valid.tolist() == [True, True, False, True]
    assert math.isnan(result.values[2])
    assert result.reason == f"{url}: the scorer failed: the score is no finite number"


def test_a_busy_server_is_retried_and_counted():
    with serving({"bright": Brightness()}, queue=1) as url:
        remote = ready(url, chunk=1, limits=Limits(attempts=30, concurrency=4))
        result = remote.score(request(12))
        counted = remote.counters()
        assert remote.counters()["calls"] == 0
        remote.close()
    assert result.valid.all()
    assert torch.equal(result.values, Brightness().score(request(12)).values)
    assert counted["calls"] == 12 + 2  # with those of `setup`
    assert counted["failures"] == 0
    assert counted["latency_p50"] <= counted["latency_p95"]


def test_what_is_wrong_is_said_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch):
    digits = DigitProbability()
    digits.setup(CPU)
    monkeypatch.setenv("TOKEN", "right")
    monkeypatch.setenv("OTHER", "wrong")
    with serving({"digits": digits, "bright": Brightness()}, token="right") as url:
        ask = {"token_env": "TOKEN"}
        assert said_at_setup(url, **ask) == f"{url} serves digits, bright: name one of them by `scorer`"
        assert said_at_setup(url, "digit", **ask) == f"{url} serves no 'digit'; there are digits, bright"
        here = digits.provenance["weights_sha256"]
        assert said_at_setup(url, "digits", {"weights_sha256": "0" * 64}, **ask) == (
            f"{url}: scorer 'digits' has weights_sha256={here}; this run expects weights_sha256={'0' * 64}"
        )
        assert "tells scorer, weights, weights_sha256, but no dtype; this run expects dtype=fp32" in said_at_setup(
            url, "digits", {"scorer": "digitprobability", "dtype": "fp32"}, **ask
        )
        assert "HTTP 401" in said_at_setup(url, "digits", token_env="OTHER")
        assert "HTTP 401" in said_at_setup(url, "digits")
        assert "ABSENT" in said_at_setup(url, "digits", token_env="ABSENT")
        ready(url, "digits", {"weights_sha256": here}, **ask).close()
    assert "/healthz: ConnectError" in said_at_setup(url, limits=QUICK)
    assert "is no address" in said_at_setup("localhost:8765")
    with pytest.raises(ValueError, match="chunk=0"):
        RemoteReward("http://127.0.0.1:1", chunk=0)


def test_a_server_that_changes_its_weights_is_noticed():
    digits = DigitProbability()
    digits.setup(CPU)
    with serving({"digits": digits}) as url:
        remote = ready(url)
        digits._sha256 = "other"
        result = remote.score(request(2, 32, "a handwritten one"))
        remote.close()
    assert not result.valid.any()
    assert result.reason == f"{url}: the server scores with another weights_sha256 now than at the start"


def test_a_process_that_never_closes_it_ends_quietly():
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2] / 'support')!r})\n"
    script += "from remotes import ready, request; r = ready(sys.argv[1]); print(r.score(request()).values.tolist())"
    with serving({"bright": Brightness()}) as url:
        done = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == Brightness().score(request()).values.tolist()
