"""Scoring while images are drawn: order, failures, waiting, exits."""

from __future__ import annotations

import csv
import queue
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from background import Background, Gated
from brightness import Brightness
from runs import config, differing, guardlit, newest, start

from guardlit.errors import GuardlitError
from guardlit.rewards import Composite, Reward, Term
from guardlit.rounds.experience import Experience
from guardlit.rounds.scoring import IN_FLIGHT, Scoring
from guardlit.training.module import GRPOModule
from guardlit.types import RewardRequest


def reward(cls: str, **init: object) -> dict[str, object]:
    return {"class_path": f"background.{cls}", "init_args": init}


def both(**init: object) -> dict[str, object]:
    """A background term that is trained on, one that is logged, and one that scores at once between them."""
    terms = [
        {"scorer": reward("Background", **init)},
        {"scorer": reward("Contrast"), "weight": 0.5, "affine": {"shift": 0.1, "scale": 0.2}},
        {"scorer": reward("Background", jitter=init.get("jitter", 0.0)), "name": "watched", "weight": 0},
    ]
    return {"class_path": "Composite", "init_args": {"terms": terms}}


def run(folder: Path, model: Path, reward: object, *options: object, **changes: object) -> int:
    """A run of one round in four batches, without validation; its exit code."""
    folder.mkdir(exist_ok=True)
    settings = {"data__rollout_batch": 2, "data__val": None, "trainer__max_epochs": 1, **changes}
    return guardlit("fit", "--config", config(folder, model, model__reward=reward, **settings), *options)


def rows(folder: Path) -> list[dict[str, str]]:
    """What was logged for each round."""
    with max(folder.rglob("metrics.csv"), key=lambda p: p.stat().st_mtime).open() as file:
        return [row for row in csv.DictReader(file) if row["time/rollout_s"]]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def experiences(monkeypatch: pytest.MonkeyPatch) -> list[Experience]:
    """Collects the rounds."""
    found: list[Experience] = []
    original = GRPOModule._begin

    def begin(self: GRPOModule, experience: Experience) -> Experience:
        found.append(experience)
        return original(self, experience)

    monkeypatch.setattr(GRPOModule, "_begin", begin)
    return found


# the same round ------------------------------------------------------------------------------------------------------


def test_the_round_does_not_depend_on_who_waits_for_whom(sd3_folder, tmp_path, monkeypatch, experiences):
    assert run(tmp_path / "late", sd3_folder, both(jitter=0.05)) == 0
    assert run(tmp_path / "soon", sd3_folder, both()) == 0
    monkeypatch.setattr(Background, "background", False)
    assert run(tmp_path / "once", sd3_folder, both()) == 0
    late, soon, once = experiences
    for other in (late, soon):
        for name in ("latents", "velocity", "advantage", "mask"):
            assert torch.equal(getattr(other, name), getattr(once, name)), name
        timeless = {k for k in once.metrics if not k.startswith("time/")}
        assert {k: other.metrics[k] for k in timeless} == {k: once.metrics[k] for k in timeless}
        assert other.metrics.keys() == once.metrics.keys()
    assert once.metrics["time/reward_hidden_s"] == 0
    assert late.metrics["time/reward_hidden_s"] > 0
    assert bool(once.advantage.any())
    check_log(*rows(tmp_path / "late"))


def check_log(row: dict[str, str]) -> None:
    """Raw and normalized scores of the terms, their sum, and what they count."""
    assert float(row["reward/background/requests"]) == 4
    raw, normal = float(row["average_reward/contrast"]), float(row["reward_normalized/contrast_mean"])
    assert normal == pytest.approx((raw - 0.1) / 0.2, rel=1e-5)
    assert "reward_normalized/background_mean" not in row
    total = float(row["average_reward/background"]) + 0.5 * normal
    assert float(row["average_reward/composite"]) == pytest.approx(total, rel=1e-5)
    assert float(row["average_reward/watched"]) == float(row["average_reward/background"])


def test_a_batch_is_scored_while_the_next_is_drawn(sd3_folder, tmp_path, monkeypatch):
    """Each score waits until the next batch is being drawn: without overlap it would wait in vain."""
    from guardlit.rounds.collector import Collector

    draws: queue.SimpleQueue[int] = queue.SimpleQueue()
    original, waited = Collector._draw, []

    def draw(self: Collector, samples: list[int], conditioning: object) -> object:
        draws.put(len(samples))
        return original(self, samples, conditioning)

    def score(self: Background, request: RewardRequest) -> object:
        if len(waited) < 3:  # of four batches
            waited.append(draws.get(timeout=20))
        return super(Background, self).score(request)

    def first(self: Collector, samples: list[int], conditioning: object) -> object:
        monkeypatch.setattr(Collector, "_draw", draw)
        return original(self, samples, conditioning)

    monkeypatch.setattr(Collector, "_draw", first)
    monkeypatch.setattr(Background, "score", score)
    assert run(tmp_path, sd3_folder, reward("Background")) == 0
    assert waited == [2, 2, 2]


# failures ------------------------------------------------------------------------------------------------------------


def test_a_failure_in_one_of_several_batches_is_left_out(sd3_folder, tmp_path, monkeypatch, experiences):
    calls: list[int] = []
    original = Background.score

    def third_breaks(self: Background, request: RewardRequest) -> object:
        calls.append(len(request))
        if len(calls) == 3:
            raise OSError("broken pipe")
        return original(self, request)

    monkeypatch.setattr(Background, "score", third_breaks)
    assert run(tmp_path, sd3_folder, reward("Background"), model__max_failed_fraction=0.25) == 0
    (experience,) = experiences
    gone = experience.round.samples[4:6]
    assert [i for i, kept in enumerate(experience.mask.tolist()) if not kept] == sorted(gone)
    assert experience.metrics["reward/failed"] == 0.25
    assert experience.advantage[gone].tolist() == [0, 0]


@pytest.mark.parametrize("background", [True, False])
def test_an_exception_ends_the_run_with_its_place_and_reason(sd3_folder, tmp_path, monkeypatch, capsys, background):
    monkeypatch.setattr(Background, "background", background)
    assert run(tmp_path, sd3_folder, reward("Background", fail="", how="raise")) == 2
    said = complaint(capsys)
    assert "round 1: 8 of 8 rewards failed, more than max_failed_fraction=0.01; the first on prompt '" in said
    assert "of rank 0; background: RuntimeError: the wires are cut (" in said
    assert "background.py, line " in said


@pytest.mark.parametrize("background", [True, False])
def test_a_hopeless_scorer_ends_the_run(sd3_folder, tmp_path, monkeypatch, capsys, background):
    monkeypatch.setattr(Background, "background", background)
    assert run(tmp_path, sd3_folder, both(how="hopeless"), model__max_failed_fraction=1.0) == 2
    said = complaint(capsys)
    assert "round 1, rank 0: reward 'background' failed on images of '" in said
    assert "the wires are cut" in said


@pytest.mark.parametrize("how", ["raise", "hopeless"])
def test_a_term_that_is_only_logged_costs_nothing(sd3_folder, tmp_path, how: str):
    terms = [{"scorer": reward("Contrast")}, {"scorer": reward("Background", how=how), "weight": 0}]
    assert run(tmp_path, sd3_folder, {"class_path": "Composite", "init_args": {"terms": terms}}) == 0
    (row,) = rows(tmp_path)
    assert float(row["reward/background_failed"]) == 1
    assert float(row["reward/failed"]) == 0
    assert row["average_reward/background"] in ("nan", "")


# waiting -------------------------------------------------------------------------------------------------------------

REQUEST = RewardRequest(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), ["a", "b"], [{}, {}])


def test_the_rollout_waits_when_too_much_is_in_flight():
    gate = threading.Semaphore(0)
    turns: list[bool] = []

    def all_ready(ready: bool, error: GuardlitError | None) -> bool:
        turns.append(ready)
        if not ready:
            gate.release()
        return ready

    with Scoring(Reward.of(Gated(gate.acquire)), 0, all_ready) as scoring:
        for _ in range(IN_FLIGHT):
            scoring.submit(REQUEST)
        assert turns == [True] * IN_FLIGHT
        scoring.submit(REQUEST)
        assert turns[IN_FLIGHT:][0] is False
        assert scoring.done >= 1
        assert len(scoring.gather()) == IN_FLIGHT + 1
    assert scoring.waited > 0


def test_results_come_in_the_order_of_the_requests():
    """Of both kinds of terms, whichever is done first."""
    both = Composite([Term(Background(jitter=0.02)), Term(Brightness(), weight=0)])
    gray = [RewardRequest(torch.full((1, 3, 8, 8), 10 * i, dtype=torch.uint8), ["a"], [{}]) for i in range(12)]
    with Scoring(both, 0, lambda ready, error: ready) as scoring:
        for request in gray:
            scoring.submit(request)
        results = scoring.gather()
    expected = [pytest.approx(10 * i / 255) for i in range(12)]
    assert [float(r.values) for r in results] == expected
    assert [float(r.details["brightness"]) for r in results] == expected


def test_every_rank_waits_until_all_are_ready():
    """As long as another rank is not ready, this one polls."""
    others = iter([False, False, True, True])

    def all_ready(ready: bool, error: GuardlitError | None) -> bool:
        return ready and next(others)

    with Scoring(Reward.of(Background()), 0, all_ready) as scoring:
        scoring.submit(REQUEST)
        assert len(scoring.gather()) == 1
    assert next(others, None) is None


def test_every_rank_gets_an_error_before_it_is_raised():
    passed_on: list[GuardlitError] = []

    def all_ready(ready: bool, error: GuardlitError | None) -> bool:
        if error is not None:
            passed_on.append(error)
            raise error
        return ready

    with Scoring(Reward.of(Background(how="hopeless")), 0, all_ready) as scoring:
        scoring.submit(REQUEST)
        with pytest.raises(GuardlitError, match="reward 'background' failed on images of 'a': the wires are cut"):
            scoring.gather()
    assert len(passed_on) == 1


def test_nothing_is_left_behind():
    """Queued requests are dropped, and the thread ends with the call that it is in."""
    begun, gate = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        gate.wait()

    scorer = Gated(hold)
    with Scoring(Reward.of(scorer), 0, lambda ready, error: ready) as scoring:
        for _ in range(3):
            scoring.submit(REQUEST)
        begun.wait()
    (thread,) = (t for t in threading.enumerate() if t.name == "reward gated")
    assert thread.daemon
    gate.set()
    thread.join()
    assert scorer.requests == 1


def test_a_scorer_that_gives_too_few_values_is_refused():
    class Short(Background):
        def score(self, request: RewardRequest) -> object:
            return super().score(RewardRequest(request.images[:1], request.prompts[:1], request.metadata[:1]))

    with pytest.raises(GuardlitError, match=r"reward 'short': score\(\) returned a Tensor of shape \(1,\) for 2"):
        Short().attempt(REQUEST)


# the ways out of a run -----------------------------------------------------------------------------------------------


def _finished(folder: Path, model: Path, reward: object, *options: object, **changes: object) -> dict[str, Path]:
    """Checkpoints by name of a run of three rounds, one for each update and round."""
    keep = {"save_top_k": -1, "auto_insert_metric_name": False}
    updates = {"filename": "update_{step}", "every_n_train_steps": 1, **keep}
    rounds = {"filename": "round_{epoch}", "every_n_epochs": 1, "save_on_train_epoch_end": True, **keep}
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": init} for init in (updates, rounds)]
    more = {"trainer__max_epochs": 3, "trainer__callbacks": callbacks, **changes}
    assert run(folder, model, reward, *options, **more) == 0
    return {p.stem: p for p in newest(folder).parent.glob("*.ckpt")}


@pytest.fixture(scope="module")
def undisturbed(sd3_folder, tmp_path_factory) -> dict[str, Path]:
    return _finished(tmp_path_factory.mktemp("undisturbed"), sd3_folder, reward("Background", jitter=0.05))


@pytest.mark.parametrize("stop", ["update_2", "round_0"])
def test_a_resumed_run_is_the_undisturbed_one(undisturbed, sd3_folder, tmp_path, stop: str):
    scorer = reward("Background", jitter=0.05)
    resumed = _finished(tmp_path, sd3_folder, scorer, "--ckpt_path", undisturbed[stop])
    assert differing(undisturbed["update_12"], resumed["update_12"]) == []


def test_ctrl_c_does_not_wait_for_a_scorer_that_never_answers(undisturbed, sd3_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "support"), prepend=":")
    reported = tmp_path / "stuck"
    settings = {"data__rollout_batch": 2, "data__val": None}
    path = config(tmp_path, sd3_folder, model__reward=reward("Stuck", reported=str(reported), after=6), **settings)
    process = start("fit", "--config", path)
    deadline = time.monotonic() + 120
    while not reported.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert reported.exists(), process.communicate()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, said
    saved = newest(tmp_path, "interrupted.ckpt")
    assert f"resume with --ckpt_path {saved}" in said
    assert torch.load(saved, weights_only=True)["global_step"] == 4
    resumed = _finished(tmp_path, sd3_folder, reward("Background"), "--ckpt_path", saved)
    assert differing(undisturbed["update_12"], resumed["update_12"]) == []


def test_terms_at_an_interval_keep_it_across_a_resume(sd3_folder, tmp_path):
    terms = [{"scorer": reward("Contrast")}, {"scorer": reward("Background"), "weight": 0, "every": 2}]
    composite = {"class_path": "Composite", "init_args": {"terms": terms}}
    complete = _finished(tmp_path / "complete", sd3_folder, composite)
    logged = [bool(row["average_reward/background"]) for row in rows(tmp_path / "complete")]
    assert logged == [True, False, True]
    resumed = _finished(tmp_path / "resumed", sd3_folder, composite, "--ckpt_path", complete["round_0"])
    assert [bool(row["average_reward/background"]) for row in rows(tmp_path / "resumed")] == [False, True]
    assert differing(complete["update_12"], resumed["update_12"]) == []


@pytest.mark.parametrize("spoilt", [-1, 0])
def test_a_single_scorer_can_log_several_scores(sd3_folder, tmp_path, spoilt: int):
    """As GenEval, whose three modes are logged next to its score."""
    marks = reward("Marks", spoilt=spoilt)
    assert run(tmp_path, sd3_folder, marks, model__max_failed_fraction=0.25) == 0
    (row,) = rows(tmp_path)
    assert float(row["reward/failed"]) == (0.25 if spoilt == 0 else 0)  # a request is 2 of 8 images
    assert float(row["average_reward/marks"]) == float(row["average_reward/gray"]) > 0
    assert float(row["average_reward/contrast"]) > 0
