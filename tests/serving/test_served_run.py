"""A run with a served proxy equals a run with its own, and resumes after the server died."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from runs import config, differing, guardlit, newest
from servers import process

from guardlit.assets import resolve
from guardlit.files import sha256
from guardlit.rewards import RemoteReward

WEIGHTS = sha256(Path(resolve("guardlit://digits_scorers")) / "proxy.safetensors")
DIGITS = {"digits": "DigitProbability"}


def run(folder: Path, reward: object) -> Path:
    """YAML of 2 rounds of 2 digits x 4 images, in rollout batches of four."""
    folder.mkdir(exist_ok=True)
    prompts = "guardlit://prompts/digits.jsonl"
    changes = {
        "model__policy__init_args__model": "guardlit://digits",
        "model__policy__init_args__max_sequence_length": 8,
        "trainer__max_epochs": 2,
    }
    return config(folder, folder, data__train=prompts, data__val=prompts, model__reward=reward, **changes)


def remote(url: str, **settings: object) -> dict[str, object]:
    expect = {"scorer": "digitprobability", "weights_sha256": WEIGHTS}
    limits = {"attempts": 2, "read": 60}
    return {
        "class_path": "RemoteReward",
        "init_args": {"url": url, "scorer": "digits", "expect": expect, "limits": limits, **settings},
    }


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of the run with the scorer in the trainer's process."""
    folder = tmp_path_factory.mktemp("local")
    assert guardlit("fit", "--config", run(folder, "DigitProbability")) == 0
    return newest(folder)


def test_a_run_with_a_served_proxy_is_the_same_run(in_process: Path, tmp_path: Path):
    with process(tmp_path, DIGITS) as (url, _):
        assert guardlit("fit", "--config", run(tmp_path / "run", remote(url))) == 0
    assert differing(in_process, newest(tmp_path)) == []


def test_a_run_resumes_after_its_server_died(in_process: Path, tmp_path: Path, monkeypatch, capsys):
    path = run(tmp_path / "run", remote("http://127.0.0.1:1", images="png"))
    there = "--model.reward.init_args.url"
    with process(tmp_path, DIGITS) as (url, server):
        _kill_before(monkeypatch, server, call=4)  # two calls a round: within the second round
        assert guardlit("fit", "--config", path, there, url) == 2
    monkeypatch.undo()
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("guardlit fit")]
    assert len(said) == 1
    found = re.fullmatch(
        r"guardlit fit: error: round 2: 4 of 8 rewards failed, .*; resume with --ckpt_path (\S+)", said[0]
    )
    assert found, said
    assert torch.load(found[1], weights_only=True)["global_step"] == 4
    assert differing(in_process, Path(found[1]))
    with process(tmp_path, DIGITS) as (url, _):
        assert guardlit("fit", "--config", path, there, url, "--ckpt_path", found[1]) == 0
    assert differing(in_process, newest(tmp_path, "round*.ckpt")) == []


def _kill_before(monkeypatch: pytest.MonkeyPatch, server, call: int) -> None:
    original, calls = RemoteReward.score, []

    def score(self: RemoteReward, request):
        calls.append(len(request))
        if calls.count(4) == call:  # validation has two images
            server.kill()
            server.wait()
        return original(self, request)

    monkeypatch.setattr(RemoteReward, "score", score)
