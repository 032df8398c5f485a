"""Processes side by side: failures, signals, locks, records; small programs stand in for trainings."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guardlit.ablation import pool as pools
from guardlit.ablation.pool import Pool, environment
from guardlit.ablation.runs import Run
from guardlit.errors import GuardlitError

PROGRAM = """
import os, signal, sys, time
from pathlib import Path

what, folder, *more = sys.argv[1:]
folder = Path(folder)
received = []

def note(number, _):
    received.append(number)
    with (folder / "received").open("a") as file:
        file.write(signal.Signals(number).name + "\\n")

def until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)

if what == "ok":
    sum(range(10**6))
elif what == "fail":
    print("the wires are cut")
    sys.exit(3)
elif what == "threads":
    (folder / "threads").write_text(os.environ["OMP_NUM_THREADS"])
elif what == "meet":
    (folder / "ready").touch()
    until((folder.parent / more[0] / "ready").exists)
    sys.exit(0 if (folder.parent / more[0] / "ready").exists() else 4)
elif what == "wait":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, note)
    (folder / "ready").touch()
    if len(more) == 2:  # signals the pool once the other run is ready
        until((folder.parent / more[0] / "ready").exists)
        os.kill(os.getppid(), getattr(signal, more[1]))
    until(lambda: received)
    time.sleep(0.5)  # in which a second one would come
    sys.exit(128 + received[0])
"""


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    monkeypatch.setattr(pools, "PROGRAM", (sys.executable, str(path)))
    monkeypatch.setattr(pools, "POLL_SECONDS", 0.01)


def make(tmp_path: Path, name: str, what: str, *more: str) -> Run:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return Run(folder, [what, str(folder), *more], {"what": what})


def record(run: Run) -> dict[str, object]:
    return json.loads((run.folder / "ablate.json").read_text())


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_is_named_and_stops_nothing(tmp_path: Path, jobs: int):
    runs = [make(tmp_path, "a", "ok"), make(tmp_path, "b", "fail"), make(tmp_path, "c", "ok")]
    lines: list[str] = []
    pool = Pool(jobs, lines.append)
    pool.train(runs)
    assert [run.finished() for run in runs] == [True, False, True]
    why = "exit code 3" + (": the wires are cut" if jobs > 1 else "")
    assert pool.failed == {runs[1].folder: why}
    assert f"{runs[1].folder}: failed: {why}" in lines
    assert sum("starts" in line for line in lines) == 3
    assert (runs[1].folder / "ablate.log").exists() == (jobs > 1)


def test_trainings_run_at_the_same_time(tmp_path: Path):
    """Each ends once the other has started; one after the other, the first would wait in vain and fail."""
    runs = [make(tmp_path, "a", "meet", "b"), make(tmp_path, "b", "meet", "a")]
    Pool(2, lambda _: None).train(runs)
    assert [run.finished() for run in runs] == [True, True]


@pytest.mark.parametrize(
    ("signum", "forwarded"),
    [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGHUP", "SIGTERM")],
)
def test_every_training_receives_a_signal_once_and_none_starts_after_it(tmp_path: Path, signum: str, forwarded: str):
    runs = [make(tmp_path, "a", "wait", "b", signum), make(tmp_path, "b", "wait"), make(tmp_path, "c", "ok")]
    lines: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, which a pool respects
    try:
        with pytest.raises(SystemExit) as stop:
            Pool(2, lines.append).train(runs)
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert stop.value.code == 128 + getattr(signal, signum)
    assert [(run.folder / "received").read_text() for run in runs[:2]] == [f"{forwarded}\n"] * 2
    assert [record(run)["finished"] for run in runs[:2]] == [False, False]
    assert not (runs[2].folder / "ablate.json").exists()
    assert sum("stopped with exit code" in line for line in lines) == 2
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_training_that_finishes_in_spite_of_a_signal_is_finished(tmp_path: Path):
    runs = [make(tmp_path, "a", "wait", "b", "SIGTERM"), make(tmp_path, "b", "wait")]
    (tmp_path / "program.py").write_text(PROGRAM.replace("128 + received[0]", "0"))
    with pytest.raises(SystemExit) as stop:
        Pool(2, lambda _: None).train(runs)
    assert stop.value.code == 128 + signal.SIGTERM
    assert [run.finished() for run in runs] == [True, True]


def test_cpu_seconds_add_up_over_the_parts_of_a_run(tmp_path: Path):
    run = make(tmp_path, "a", "ok")
    Pool(1, lambda _: None).train([run])
    once = run.cpu_seconds()
    assert once > 0
    run.record(finished=False, cpu_seconds=1000)
    assert run.cpu_seconds() == pytest.approx(once + 1000)
    Pool(1, lambda _: None).train([run])
    assert run.cpu_seconds() > once + 1000


def test_a_folder_is_trained_by_one_process(tmp_path: Path):
    run = make(tmp_path, "a", "ok")
    holder = "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", holder, str(run.folder / ".ablate.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        pool, other = Pool(1, lambda _: None), make(tmp_path, "b", "ok")
        with pytest.raises(GuardlitError, match=f"{run.folder} is being trained by another process"):
            pool.train([other, run])
        assert not other.finished()
        process.communicate(b"\n")
    Pool(1, lambda _: None).train([run])
    assert run.finished()


def test_a_training_holds_the_lock_itself(tmp_path: Path):
    run = make(tmp_path, "a", "wait", "a", "SIGTERM")
    held: list[bool] = []

    def look(line: str) -> None:
        if "starts" in line:  # this process has the file open; so has the training, which inherits it
            with pytest.raises(GuardlitError, match="is being trained by another process"), run.locked():
                pass
            held.append(True)

    with pytest.raises(SystemExit):
        Pool(1, look).train([run])
    assert held == [True]
    with run.locked():
        pass


def test_cores_are_divided_unless_the_environment_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert environment(3, {})["OMP_NUM_THREADS"] == "2"
    assert environment(16, {})["OMP_NUM_THREADS"] == "1"
    assert environment(3, {"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"
    assert "OMP_NUM_THREADS" not in environment(1, {})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run = make(tmp_path, "a", "threads")
    Pool(2, lambda _: None).train([run])
    assert (run.folder / "threads").read_text() == "4"
