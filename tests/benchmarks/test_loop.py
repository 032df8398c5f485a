"""benchmarks/loop: every moment has one owner, pairs give ratios with an interval, and regressions are found."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.loop.ledger import BARE, OTHER_THREADS, Clocks, Ledger  # noqa: E402
from benchmarks.loop.ratios import bare_over_run, differing, measures, standard_error, worse  # noqa: E402


class Clock:
    """Time that passes only when a test advances it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.main = self.others = self.idle = 0.0
        monkeypatch.setattr(time, "thread_time", lambda: self.main)
        monkeypatch.setattr(time, "process_time", lambda: self.main + self.others)
        monkeypatch.setattr(time, "perf_counter", lambda: self.main + self.idle)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_moment_belongs_to_the_innermost_name(clock: Clock):
    ledger = Ledger(one_thread=True)
    ledger.enter("update")
    clock.main += 1
    with ledger.spend("step"):
        clock.main += 2
        with ledger.spend("model"):
            clock.main += 4
        clock.idle += 8
    with ledger.spend(BARE):
        clock.main += 16
    assert ledger.of_run("update") == Clocks(7, 15)
    spent = {name: clocks for (phase, name), clocks in ledger.spent.items() if phase == "update"}
    assert spent["rest"] == (1, 1)
    assert spent["step"] == (2, 10)
    assert spent["model"] == (4, 4)
    assert spent[BARE] == (16, 16)


def test_work_of_other_threads_during_a_bare_call_belongs_to_the_run(clock: Clock):
    ledger = Ledger(one_thread=True)
    ledger.enter("rollout")
    with ledger.spend(BARE):
        clock.main += 1
        clock.others += 0.5
    assert ledger.spent["rollout", BARE].cpu == 1
    assert ledger.spent["rollout", OTHER_THREADS].cpu == 0.5
    assert ledger.of_run("rollout").cpu == 0.5


def test_an_error_closes_the_name(clock: Clock):
    ledger = Ledger(one_thread=False)
    with pytest.raises(ZeroDivisionError), ledger.spend("step"):
        raise ZeroDivisionError
    clock.main += 3
    assert ledger.of_run("start").cpu == 3
    assert ledger.spent["start", "rest"].cpu == 3


def test_a_wrapped_method_returns_the_same(clock: Clock):
    class Worker:
        def work(self, seconds: float) -> float:
            clock.main += seconds
            return 2 * seconds

    worker, ledger = Worker(), Ledger(one_thread=True)
    ledger.wrap(worker, "work", "work")
    assert worker.work(3.0) == 6.0
    ledger.charge()
    assert ledger.spent["start", "work"].cpu == 3.0


def test_the_ratio_counts_what_comes_after_the_last_pair():
    pairs = [(1.0, 1.0), (3.0, 2.0)]
    assert bare_over_run(pairs) == 3 / 4
    assert bare_over_run(pairs, tail=2.0) == 3 / 6


def test_the_error_is_that_of_a_ratio_of_means():
    generator = np.random.default_rng(1)
    slow = generator.uniform(0.5, 2.0, 400)  # a busy machine: both of a pair are slow
    own = generator.normal(0.0, 0.02, 400)
    pairs = list(zip(slow * (1 + own), slow, strict=True))
    residual = (slow - slow * (1 + own)) / slow.mean()  # by the delta method
    expected = residual.std(ddof=1) / np.sqrt(len(pairs))
    assert standard_error([pairs]) == pytest.approx(expected, rel=0.1)
    unpaired = slow / slow.mean()
    assert standard_error([pairs]) < unpaired.std() / np.sqrt(len(pairs)) / 10  # the gain of pairing


def test_the_first_round_is_separate_from_later_ones():
    def a_round(run: float, after: float) -> dict[str, tuple[list[tuple[float, float]], float]]:
        return {"rollout": ([(run, 1.0)] * 4, 4 * run), "update": ([(run, 2.0)] * 2, 2 * run + after)}

    found = {name: ratio for name, (ratio, _) in measures([a_round(4, 0), a_round(2, 1), a_round(2, 3)]).items()}
    assert found == {
        "first rollout": 4 / 16,
        "first update": 4 / 8,
        "first round": 8 / 24,
        "later rollout": 8 / 16,
        "later update": 8 / 12,
        "later round": 16 / 28,
    }
    assert {name.partition(" ")[0] for name in measures([a_round(1, 0)])} == {"first"}


BASE = [{"later update": (0.990, 0.002)}, {"later update": (0.994, 0.002)}]


def test_a_ratio_within_the_noise_is_no_regression():
    assert worse([{"later update": (0.985, 0.002)}], BASE) == []
    assert worse([{"later update": (1.100, 0.002)}], BASE) == []


def test_a_ratio_below_the_noise_is_a_regression():
    (line,) = worse([{"later update": (0.970, 0.002)}], BASE)
    assert line.startswith("later update: 0.970, baseline 0.992, worse than 0.98")


def test_runs_of_the_baseline_that_lie_apart_widen_the_bound():
    apart = [{"later update": (0.96, 0.002)}, {"later update": (1.02, 0.002)}]
    assert worse([{"later update": (0.970, 0.002)}], apart) == []


def test_a_noisy_measurement_alone_proves_nothing():
    assert worse([{"later update": (0.970, 0.02)}], BASE) == []


def test_another_setting_is_another_measurement():
    here, there = {"size": "tiny", "set": ["model.old_velocity=recomputed"]}, {"size": "mid", "set": []}
    assert differing(here, here) == []
    assert differing(here, there) == [
        "set is ['model.old_velocity=recomputed'] here and [] there",
        "size is 'tiny' here and 'mid' there",
    ]


def loop(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.loop", "--size", "tiny", "--rounds", "2", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)


def test_a_run_is_paired_and_compared(tmp_path: Path):
    """A complete run: 40 steps and 36 micro-batches a round, a changed setting, an unreachable baseline."""
    written = tmp_path / "ratios.json"
    unreachable = tmp_path / "base.json"
    setting = "model.old_velocity=recomputed"
    settings = {"size": "tiny", "rounds": 2, "callbacks": "all", "set": [setting], "threads": 1}
    names = ("first rollout", "first update", "first round", "later rollout", "later update", "later round")
    runs = [{"bare_over_run": {name: [50.0, 1e-3] for name in names}}]
    unreachable.write_text(json.dumps({"settings": settings, "runs": runs}))

    done = loop("--json", written, "--compare", unreachable, "--set", setting)
    assert done.returncode == 1, done.stderr
    last = done.stdout.splitlines()[-1]
    assert all(f"{name}: 0." in last for name in names)

    (run,) = json.loads(written.read_text())["runs"]
    assert set(run["bare_over_run"]) == set(names)
    assert all(0.05 < ratio < 1.5 and error > 0 for ratio, error in run["bare_over_run"].values())
    # each micro-batch calls the old policy once more: inside the model, but not in the bare loop
    assert run["fraction_in_model"]["update"] > run["bare_over_run"]["later update"][0]


def test_a_baseline_of_another_size_is_refused_before_anything_runs(tmp_path: Path):
    base = tmp_path / "base.json"
    base.write_text(json.dumps({"settings": {"size": "mid"}, "runs": []}))
    done = loop("--compare", base)
    assert done.returncode == 2
    assert "size is 'tiny' here and 'mid' there" in done.stderr
