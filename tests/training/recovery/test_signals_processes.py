"""Of two processes one fails, dies, hangs or gets a signal: both end, and both say why."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from forked import Forked, forked
from runs import config, differing, newest

TWO = ("--trainer.devices", 2, "--trainer.strategy", "ddp")


def trouble(folder: Path, model: Path, what: str | None, place: str = "", at: int = 0, rank: int = 1, **more) -> Path:
    """The YAML of two rounds on two processes, with a validation after each."""
    callbacks = [{"class_path": "guardlit_callbacks.TrainableEMA"}]
    if what:
        init = {"what": what, "place": place, "at": at, "rank": rank, "marker": str(folder / "marker")}
        callbacks.append({"class_path": "troubles.Trouble", "init_args": init})
    settings = {"trainer__max_epochs": 2, "trainer__check_val_every_n_epoch": 1, "data__rollout_batch": 1}
    return config(folder, model, data__micro_batch=2, trainer__callbacks=callbacks, **settings, **more)


CUT = "rank 1: RuntimeError: the wires are cut"
MEMORY = "rank 1: OutOfMemoryError: CUDA out of memory"
GONE = "rank 0: the prompt file is gone"


@pytest.mark.parametrize(
    ("what", "place", "at", "rank", "own", "heard"),
    [
        ("raise", "rollout", 3, 1, "and more lines", CUT),
        pytest.param("memory", "batch", 2, 1, "CUDA out of memory", MEMORY, marks=pytest.mark.slow),
        ("user error", "setup", 0, 0, "guardlit fit: error: the prompt file is gone", GONE),
    ],
)
def test_an_error_of_one_process_is_the_last_line_of_both(
    sd3_folder: Path, tmp_path: Path, what: str, place: str, at: int, rank: int, own: str, heard: str
):
    run = forked(tmp_path, "fit", "--config", trouble(tmp_path, sd3_folder, what, place, at, rank), *TWO)
    codes = run.wait()
    assert (codes[rank], codes[1 - rank]) == (2 if what == "user error" else 1, 2), both(run)
    assert own in run.last(rank)
    assert run.last(1 - rank).startswith(f"guardlit fit: error: stopped because another rank failed: {heard}")


def test_a_process_that_is_killed_is_named_by_the_other(sd3_folder: Path, tmp_path: Path):
    run = forked(tmp_path, "fit", "--config", trouble(tmp_path, sd3_folder, "SIGKILL", "rollout", 3), *TWO)
    assert run.wait() == [2, -signal.SIGKILL], both(run)
    assert re.match("guardlit fit: error: rank 1, last at .*, is dead, stopped or disconnected: ", run.last(0))


@pytest.mark.slow
def test_a_process_that_stands_still_is_named_with_the_collective_and_its_limit(sd3_folder: Path, tmp_path: Path):
    strategy = {"class_path": "DDPStrategy", "init_args": {"timeout": "0:00:30"}}
    path = trouble(tmp_path, sd3_folder, "SIGSTOP", "rollout", 3, trainer__strategy=strategy)
    run = forked(tmp_path, "fit", "--config", path, "--trainer.devices", 2)
    run.processes[0].join(200)
    run.kill(signal.SIGKILL, 1)
    assert run.wait() == [2, -signal.SIGKILL], both(run)
    said = "rank 1, last at .*, is dead, stopped or disconnected: all_reduce of rank 0 at rollout 3 of 20 failed "
    assert re.match(
        f"guardlit fit: error: {said}.*imed ?out.*the limit is the strategy's `timeout`, 0:00:30", run.last(0)
    )


def test_the_second_ctrl_c_ends_both_at_once(sd3_folder: Path, tmp_path: Path):
    """Of a process that sleeps where it would score, and of one that waits for it in a collective."""
    run = forked(tmp_path, "fit", "--config", trouble(tmp_path, sd3_folder, "sleep", "reward", 1), *TWO)
    run.until(tmp_path / "marker")
    run.kill(signal.SIGINT, 0, 1)
    for n in range(40):  # signals that come before a rank has answered the one before count as one
        run.processes[1].join(0.5)
        if not run.processes[1].is_alive():
            break
        run.kill(signal.SIGINT, *((0, 1) if n == 0 else (1,)))  # a third one would find rank 0 on its way out
    codes = run.wait(60)
    assert codes[1] == 130, both(run)
    assert codes[0] in (2, 130), both(run)
    assert not list(tmp_path.rglob("interrupted.ckpt"))


@pytest.fixture(scope="module")
def undisturbed(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run = forked(folder, "fit", "--config", trouble(folder, sd3_folder, None), *TWO)
    assert run.wait() == [0, 0], both(run)
    return newest(folder)


@pytest.mark.parametrize(
    ("number", "place", "at", "rank"),
    [("SIGTERM", "validation", 0, 1), pytest.param("SIGUSR1", "batch", 5, 0, marks=pytest.mark.slow)],
)
def test_a_signal_to_one_process_stops_both_and_the_resumed_run_is_the_undisturbed_one(
    undisturbed: Path, sd3_folder: Path, tmp_path: Path, number: str, place: str, at: int, rank: int
):
    path = trouble(tmp_path, sd3_folder, number, place, at, rank)
    run = forked(tmp_path, "fit", "--config", path, *TWO)
    assert run.wait() == [128 + getattr(signal, number)] * 2, both(run)
    saved = newest(tmp_path, "interrupted.ckpt")
    for rank in range(2):
        assert run.last(rank).startswith(f"guardlit fit: stopped by {number} at update ")
        assert run.last(rank).endswith(str(saved))
    trouble(tmp_path, sd3_folder, None)
    again = forked(tmp_path, "fit", "--config", path, "--ckpt_path", saved, *TWO)
    assert again.wait() == [0, 0], both(again)
    assert differing(undisturbed, newest(tmp_path / "runs/version_1")) == []


@pytest.mark.slow
def test_a_process_that_hears_nothing_is_ended_by_its_watch(sd3_folder: Path, tmp_path: Path):
    """It sleeps where no signal and no closed connection wakes it, while the other one raises."""
    path = trouble(tmp_path, sd3_folder, "sleep and raise", "reward", 1, rank=1)
    run = forked(tmp_path, "fit", "--config", path, *TWO)
    assert run.wait() == [1, 1], both(run)
    assert run.last(1).startswith("guardlit: error: rank 0: RuntimeError: the wires are cut")


def both(run: Forked) -> str:
    return "\n\n".join(log.read_text()[-3000:] for log in run.logs)
