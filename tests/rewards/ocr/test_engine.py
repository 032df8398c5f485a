"""The subprocesses that read text: deaths, time-outs, exits, and broken installations."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from written import sign_request

from guardlit.errors import GuardlitError
from guardlit.rewards import OCR
from guardlit.rewards.ocr import engine as ocr_engine
from guardlit.rewards.ocr.engine import Readers
from guardlit.rewards.outcome import Outcome

CPU = torch.device("cpu")


def test_a_process_that_dies_costs_no_result(ocr):
    ocr.counters()
    (pid,) = ocr._readers._executor._processes
    os.kill(pid, signal.SIGKILL)
    assert ocr.score(sign_request("Open", "Left")).values.tolist() == [1, 1]
    assert ocr.counters() == {"failures": 0, "deaths": 1}


def test_processes_that_always_die_give_no_number_and_no_hang():
    scorer = OCR(workers=1)
    scorer._readers = Readers(1, 512, seconds=0.001)  # too short for anything: each process ends itself
    try:
        result = scorer.score(sign_request("Open", "Left"))
        assert result.values.isnan().all()
        assert result.reason == "the process that read the image died, and so did the one of the retry"
        assert scorer.counters() == {"failures": 2, "deaths": 2}
    finally:
        scorer.close()
    assert scorer.counters() == {}


def test_processes_end_with_close():
    readers = Readers(1, 512)
    readers.self_test()
    before = {child.pid for child in multiprocessing.active_children()}
    pids = set(readers._executor._processes)
    assert pids <= before
    readers.close()
    assert not pids & {child.pid for child in multiprocessing.active_children()}
    readers.close()


SCRIPT = """
import os, signal, sys, torch
from guardlit.rewards import OCR
if __name__ == "__main__":
    scorer = OCR(workers=1)
    scorer.setup(torch.device("cpu"))
    print(*scorer._readers._executor._processes, flush=True)
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["exits", pytest.param("killed", marks=pytest.mark.slow)])
def test_processes_end_with_their_parent(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, how], capture_output=True, text=True, timeout=120)
    assert done.returncode == (0 if how == "exits" else -signal.SIGKILL)
    assert how == "killed" or done.stderr == ""  # else Python's own warning of what a killed process leaves
    assert ended(int(done.stdout))


def ended(pid: int) -> bool:
    """Whether a process ends within half a minute."""
    for _ in range(600):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # exited, and not reaped yet
            return True
        time.sleep(0.05)
    return False


def test_a_missing_package(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rapidocr" else find(name))
    assert setup_error() == "reading text needs rapidocr: pip install 'guardlit[ocr]'"


def test_a_missing_model(monkeypatch):
    monkeypatch.setitem(ocr_engine.MODELS, "Det", "PP-OCRv9.onnx")
    assert re.fullmatch(r".*/PP-OCRv9.onnx: missing from this rapidocr; pip install .*", setup_error())


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Outcome(["GUAPO"]), "GUARD was read as ['GUAPO']"),
        (Outcome([]), "GUARD was read as []"),
        (Outcome(error="ImportError: libGL.so.1: no such file"), "ImportError: libGL.so.1: no such file"),
    ],
)
def test_an_engine_that_does_not_read(monkeypatch, outcome, problem):
    monkeypatch.setattr(Readers, "read", lambda self, images: [outcome] * len(images))
    assert setup_error() == (
        f"rapidocr does not work here ({problem}); try pip install --force-reinstall 'guardlit[ocr]'"
    )


def setup_error() -> str:
    with pytest.raises(GuardlitError) as caught:
        OCR(workers=2).setup(CPU)
    return str(caught.value)
