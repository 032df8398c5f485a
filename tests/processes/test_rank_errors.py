"""Errors are distinguished from reports that another rank is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from guardlit.errors import GuardlitError
from guardlit.processes.rank_errors import (
    OtherRankError,
    is_connection_loss,
    is_on_all_ranks,
    is_timeout,
    one_line,
    report_to_launcher,
)

LOST = [
    RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"),
    RuntimeError("Connection reset by peer"),
    RuntimeError("[../unbound_buffer.cc:81] Timed out waiting 30000ms for recv operation to complete"),
    dist.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp"),
    dist.DistNetworkError("the client socket has failed to connect"),
]
OWN = [
    RuntimeError("the wires are cut"),
    torch.OutOfMemoryError("CUDA out of memory while connecting to gloo"),
    GuardlitError("the reward server timed out"),
    ValueError("connection closed"),
]


def test_only_errors_of_the_connection_are_connection_losses():
    assert [is_connection_loss(error) for error in LOST] == [True] * len(LOST)
    assert [is_connection_loss(error) for error in OWN] == [False] * len(OWN)


def test_a_timeout_is_recognized():
    assert [is_timeout(error) for error in LOST] == [False, False, True, False, False]


def test_one_line_names_the_class_but_of_an_error_for_the_user():
    assert one_line(RuntimeError("\n the wires are cut\nand more")) == "RuntimeError: the wires are cut"
    assert one_line(GuardlitError("no such file")) == "no such file"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(RuntimeError("x" * 9999))) == len("RuntimeError: ") + 500


def test_an_error_is_shared_where_it_says_so():
    error = GuardlitError("a")
    assert not is_on_all_ranks(error)
    error.on_all_ranks = True
    assert is_on_all_ranks(error)


def test_torchrun_s_report_has_the_error_but_of_the_rank_that_caused_it(tmp_path: Path, monkeypatch):
    report = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(report))
    with pytest.raises(OtherRankError), report_to_launcher():
        raise OtherRankError("stopped because another rank failed: rank 1: ...")
    assert not report.exists()
    with pytest.raises(GuardlitError, match="no such file"), report_to_launcher():
        raise GuardlitError("no such file")
    assert "no such file" in json.dumps(json.loads(report.read_text()))


def test_without_torchrun_nothing_is_written(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a"), report_to_launcher():
        raise ValueError("a")
    assert list(tmp_path.iterdir()) == []
