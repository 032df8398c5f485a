"""`python -m benchmarks.gpu` keeps its results when a stage fails; its rehearsal runs every stage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import pair, parts, processes, report
from benchmarks.gpu.campaign import ORDER, STAGES, Campaign, chosen
from benchmarks.gpu.stage import Bench, NotMeasuredError, Stage

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(1800)  # a busy machine may need minutes instead of seconds


def played(tmp_path: Path, *stages: Stage, seconds: float = 60, jobs: int = 1) -> tuple[int, dict[str, dict]]:
    """Stages run as a rehearsal: the exit code and the rows by name."""
    campaign = Campaign(stages, tmp_path / "out", seconds, rehearse=True, jobs=jobs)
    code = campaign.run()
    campaign.close()
    return code, read(tmp_path / "out")


def read(out: Path) -> dict[str, dict]:
    return {row["name"]: row for row in json.loads((out / "results.json").read_text())["rows"]}


def stage(run: Callable[[Bench], None], *rows: str, name: str = "s", budget: float = 20, alone: bool = True) -> Stage:
    return Stage(name, "", run, budget, rows, alone)


def first_then(what: Callable[[], object]) -> Callable[[Bench], None]:
    def run(bench: Bench) -> None:
        bench.row("first", 1.5, "s")
        what()
        bench.row("second", 2)

    return run


ENDS = {
    "an error": (lambda: 1 / 0, "ended with 1: ZeroDivisionError"),
    "memory": (lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory left")), "ended with 1: OutOfMemory"),
    "a crash": (lambda: os.kill(os.getpid(), signal.SIGKILL), "ended with -9"),
    "an exit": (lambda: os._exit(3), "ended with 3"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_stage_that_fails_loses_neither_its_rows_nor_the_others(tmp_path: Path, end: str):
    what, said = ENDS[end]
    last = stage(lambda bench: bench.row("third", 3), "third", name="t")
    code, rows = played(tmp_path, stage(first_then(what), "first", "second"), last)
    assert code == 1
    assert (rows["first"]["value"], rows["first"]["unit"], rows["third"]["value"]) == (1.5, "s", 3)
    assert rows["second"]["value"] is None
    assert rows["second"]["note"].startswith(f"not measured: {said}")
    assert {row["device"] for row in rows.values()} == {"CPU"}
    assert {row["torch"] for row in rows.values()} == {torch.__version__}
    table = (tmp_path / "out/results.md").read_text()
    assert "| s | first | 1.5 | s | CPU |" in table
    assert "| s | second | not measured |" in table


def test_a_stage_is_killed_at_its_budget_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from benchmarks.gpu import campaign

    monkeypatch.setattr(campaign, "SLOW", 1)
    started = tmp_path / "pid"

    def run(bench: Bench) -> None:
        bench.row("first", 1)
        processes.fork(lambda: started.write_text(str(os.getpid())) and time.sleep(600), tmp_path / "log").wait(600)

    code, rows = played(tmp_path, stage(run, "first", "second", budget=3))
    assert code == 1
    assert rows["first"]["value"] == 1
    assert rows["second"]["note"] == "not measured: killed at its budget of 3 s"
    until = time.monotonic() + 20
    while Path(f"/proc/{started.read_text()}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{started.read_text()}").exists()


def test_what_does_not_begin_in_time_says_so(tmp_path: Path):
    code, rows = played(tmp_path, stage(lambda bench: bench.row("first", 1), "first"), seconds=5)
    assert code == 1
    assert rows["first"]["note"] == "not measured: the time was up before it began"


def test_numbers_that_are_none_and_reasons(tmp_path: Path):
    def run(bench: Bench) -> None:
        bench.row("nan", float("nan"), note="a mean")
        bench.trying("option", lambda: (_ for _ in ()).throw(NotMeasuredError("it is not there")))
        raise NotMeasuredError("no GPU")

    code, rows = played(tmp_path, stage(run, "owed"))
    assert code == 0
    assert rows["nan"]["note"] == "not measured: the result was nan; a mean"
    assert rows["option"]["note"] == "not measured: it is not there"
    assert rows["owed"]["note"] == "not measured: no GPU"


def test_stages_that_take_no_times_share_the_device_and_others_do_not(tmp_path: Path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"

    def waits(bench: Bench) -> None:
        begun.touch()
        until = time.monotonic() + 20
        while not ended.exists() and time.monotonic() < until:
            time.sleep(0.01)
        bench.row("parallel", float(ended.exists()))

    def parallel(bench: Bench) -> None:
        until = time.monotonic() + 20
        while not begun.exists() and time.monotonic() < until:
            time.sleep(0.01)
        ended.touch()

    def alone(bench: Bench) -> None:
        bench.row("known", bench.known["parallel"])

    two = (stage(waits, name="a", alone=False), stage(parallel, name="b", alone=False))
    code, rows = played(tmp_path, *two, stage(alone, name="c"), jobs=2)
    assert code == 0
    assert rows["parallel"]["value"] == rows["known"]["value"] == 1  # c came after both


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"name": "complete"}\n{"name": "cu')
    assert report.read(path) == [{"name": "complete"}]


def test_idle_time_is_what_no_kernel_covers():
    assert parts._covered([(0, 2), (1, 3), (5, 6), (5, 5.5)]) == (6, 4)


def test_stages_are_named_and_ordered():
    assert [s.name for s in STAGES] == list(ORDER)
    assert [s.name for s in chosen(["scale", "ceilings"], [])] == ["ceilings", "scale"]
    assert [s.name for s in chosen(None, ORDER[1:])] == [ORDER[0]]
    with pytest.raises(ValueError, match="there is no stage zebra"):
        chosen(["zebra"], [])
    names = [name for s in STAGES for name in s.rows]
    assert len(names) == len(set(names)) > 80


def test_the_suite_finds_the_tests_marked_gpu():
    names = {path.relative_to(ROOT).as_posix() for path in pair.gpu_tests()}
    assert {"tests/gpu/test_gpu_runs.py", "tests/gpu/test_gpu_policies.py"} <= names


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu", *map(str, options)]


def environment() -> dict[str, str]:
    paths = [str(ROOT), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def test_an_interrupted_rehearsal_leaves_its_results(tmp_path: Path):
    options = ("--rehearse", "--only", "ceilings", "resume", "--minutes", 20, "--out", tmp_path)
    process = subprocess.Popen(command(*options), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "resume begins" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130
    rows = read(tmp_path)
    assert rows["copy within memory"]["value"] > 0
    assert rows["killed and resumed, default: tensors that differ"]["note"].endswith(
        "cut off by the end of the program"
    )
    assert (tmp_path / "log.txt").exists()


def rehearsed(out: Path, *options: object) -> dict[str, dict]:
    done = subprocess.run(
        command("--rehearse", "--minutes", 30, "--out", out, *options),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text()[-3000:]
    return read(out)


LEFT_OUT = (
    "the rehearsal leaves it out",
    "a rehearsal ",
    "the CPU counts no peak",
    "NCCL needs CUDA",
    "not available here",
)


def unexpected(rows: dict[str, dict]) -> list[str]:
    """Rows without a number that a rehearsal does not explain."""
    return [
        f"{name}: {row['note']}"
        for name, row in rows.items()
        if row["value"] is None and not any(text in row["note"] for text in LEFT_OUT)
    ]


def test_a_rehearsal_of_the_quick_stages(tmp_path: Path):
    rows = rehearsed(tmp_path, "--only", "ceilings", "scale", "round")
    assert unexpected(rows) == []
    assert rows["round: bare calls / real"]["value"] > 0
    assert 0 < rows["update: fraction inside the model"]["value"] <= 1
    assert 0 < rows["float16 gradient, scale 2^16: error"]["value"] < 1


@pytest.mark.slow
def test_a_rehearsal_of_everything(tmp_path: Path):
    rows = rehearsed(tmp_path)
    assert unexpected(rows) == []
    assert {row["stage"] for row in rows.values()} == set(ORDER)
    assert rows["killed and resumed, deterministic: tensors that differ"]["value"] == 0
    assert rows["exported LoRA in diffusers: tensors that differ"]["value"] == 0
    assert rows["a tiny round against the CPU's"]["value"] == 0  # it is the CPU
    assert rows["two processes, gloo: distance from one process"]["value"] < 1e-3
    assert rows["usual loop / guardlit, round"]["value"] > 0
