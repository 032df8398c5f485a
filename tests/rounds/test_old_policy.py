"""Where the old policy's velocities come from, through whole runs on the tiny SD3 folder."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest
import torch
from runs import config, differing, guardlit, newest
from watching import raise_after

from guardlit.devices.transfer import Trajectories
from guardlit.objective import GRPOGuard
from guardlit.rounds.noise_floor import noise_floor, rounding_limit
from guardlit.rounds.old_policy import OldPolicy, rows_a_call
from guardlit.training.module import GRPOModule

UPDATE, ROUND = 4, 16  # micro-batches


def run(folder: Path, model: Path, old_velocity: str, *options: object, **changes: object) -> Path:
    """Two rounds; the last checkpoint."""
    folder.mkdir()
    changes = {"model__old_velocity": old_velocity, "trainer__max_epochs": 2, **changes}
    assert guardlit("fit", "--config", config(folder, model, **changes), *options) == 0
    return newest(folder)


@pytest.fixture
def recomputations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Calls of the old policy in training, by micro-batch of the run."""
    calls: list[int] = []
    original_step, original = GRPOModule.training_step, GRPOModule.other_velocity

    def step(self, batch, batch_idx):
        calls.append(0)
        return original_step(self, batch, batch_idx)

    def other(self, batch, weights):
        calls[-1] += weights == "old"
        return original(self, batch, weights)

    monkeypatch.setattr(GRPOModule, "training_step", step)
    monkeypatch.setattr(GRPOModule, "other_velocity", other)
    return calls


def decision(path: Path) -> str | None:
    return torch.load(path, weights_only=True)["guardlit"]["old_velocity"].get("decided")


def test_a_round_s_first_update_recomputes_nothing(sd3_folder, tmp_path, recomputations):
    """Except for the run's first one, in which a second call measures the noise floor."""
    run(tmp_path / "a", sd3_folder, "recomputed")
    assert recomputations == [1] * ROUND + [0] * UPDATE + [1] * (ROUND - UPDATE)


def test_auto_is_stored_to_the_last_bit_where_batches_are_equal(sd3_folder, tmp_path, recomputations, caplog):
    with caplog.at_level(logging.INFO):
        auto = run(tmp_path / "auto", sd3_folder, "auto")
    lines = [r.getMessage() for r in caplog.records if "old velocities are stored" in r.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith("noise floor of the log ratio by step")
    assert not any(recomputations)
    assert decision(auto) == "stored"
    assert differing(auto, run(tmp_path / "stored", sd3_folder, "stored")) == []


def test_auto_is_recomputed_where_batches_differ(sd3_folder, tmp_path, recomputations, monkeypatch):
    kept: list[bool] = []
    original = Trajectories.__init__

    def watch(self, latents, velocity, *rest):
        kept.append(velocity is not None)
        original(self, latents, velocity, *rest)

    monkeypatch.setattr(Trajectories, "__init__", watch)
    auto = run(tmp_path / "auto", sd3_folder, "auto", data__rollout_batch=8)
    assert kept == [False, False]
    assert recomputations == [1] * ROUND + [0] * UPDATE + [1] * (ROUND - UPDATE)
    again = run(tmp_path / "again", sd3_folder, "recomputed", data__rollout_batch=8)
    assert differing(auto, again) == []


def test_a_round_that_is_less_than_a_batch_is_drawn_with_other_rows(sd3_folder, tmp_path):
    """8 images, where the configuration says 16 for both."""
    keep = {"filename": "update", "every_n_train_steps": 1, "save_top_k": -1}
    changes = {
        "data__micro_batch": 16,
        "data__rollout_batch": 16,
        "trainer__max_steps": 1,
        "trainer__callbacks": [{"class_path": "ModelCheckpoint", "init_args": keep}],
    }
    run(tmp_path / "a", sd3_folder, "auto", **changes)
    saved = torch.load(newest(tmp_path, "update.ckpt"), weights_only=True)
    assert "velocity" not in saved["PromptDataModule"]["experience"]


@pytest.mark.parametrize("old_velocity", ["stored", "recomputed"])
def test_the_noise_floor_is_logged_before_the_first_update_that_is_made(sd3_folder, tmp_path, caplog, old_velocity):
    """As under 16-mixed, whose first updates overflow until the loss scale is low enough."""
    poison = {"class_path": "exploding.Poison", "init_args": {"updates": [0, 1, 2, 3, 4]}}
    changes = {"model__nonfinite": "skip", "model__max_skipped": 5, "trainer__callbacks": [poison]}
    with caplog.at_level(logging.INFO):
        run(tmp_path / "a", sd3_folder, old_velocity, **changes)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("noise floor of the log ratio")]
    assert len(lines) == 1


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout whose velocities are off, as those of half precision at another shape are."""
    original = Trajectories.put

    def put(self, first, drawn):
        original(self, first, drawn)
        if self.velocity is not None:
            self.velocity[first : first + len(drawn.latents)] *= 1.05

    monkeypatch.setattr(Trajectories, "put", put)


def test_auto_recomputes_where_rounding_would_decide(sd3_folder, tmp_path, rounding):
    """No loss has used what was measured, and velocities that are not needed any more are freed."""
    auto = run(tmp_path / "auto", sd3_folder, "auto")
    assert decision(auto) == "recomputed"
    assert differing(auto, run(tmp_path / "again", sd3_folder, "recomputed")) == []
    every = _every_update(tmp_path / "second", sd3_folder, "auto")
    rounds = [torch.load(every / f"update_{n}.ckpt", weights_only=True) for n in (1, 2)]
    assert all("velocity" not in r["PromptDataModule"]["experience"] for r in rounds)


def _every_update(folder: Path, model: Path, old_velocity: str) -> Path:
    """A round with a checkpoint after each update; their folder."""
    keep = {"filename": "update_{step}", "every_n_train_steps": 1, "save_top_k": -1, "auto_insert_metric_name": False}
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": keep}]
    return run(folder, model, old_velocity, trainer__callbacks=callbacks, trainer__max_epochs=1).parent


@pytest.mark.parametrize("at", [2, 6])
def test_auto_resumes_bit_for_bit(sd3_folder, tmp_path, monkeypatch, at):
    """Within the update that measures, and after it."""
    undisturbed = run(tmp_path / "a", sd3_folder, "auto")
    path, runs = tmp_path / "a" / "run.yaml", tmp_path / "runs"
    raise_after(monkeypatch, "on_train_batch_end", at)
    assert guardlit("fit", "--config", path, "--trainer.default_root_dir", runs) == 128 + signal.SIGTERM
    monkeypatch.undo()
    saved = runs / "version_0/checkpoints/interrupted.ckpt"
    assert decision(saved) == (None if at < UPDATE else "stored")
    assert guardlit("fit", "--config", path, "--ckpt_path", saved, "--trainer.default_root_dir", runs) == 0
    assert differing(undisturbed, newest(runs, "round*.ckpt")) == []


def test_recomputed_keeps_no_velocities_and_stored_misses_them(sd3_folder, tmp_path, capsys):
    folder = _every_update(tmp_path / "a", sd3_folder, "recomputed")
    middle = folder / "update_2.ckpt"
    assert "velocity" not in torch.load(middle, weights_only=True)["PromptDataModule"]["experience"]
    path = tmp_path / "a" / "run.yaml"
    assert guardlit("fit", "--config", path, "--ckpt_path", middle, "--model.old_velocity", "stored") == 2
    assert "model.old_velocity=stored: the checkpoint stands within a round" in capsys.readouterr().err
    assert guardlit("fit", "--config", path, "--ckpt_path", middle, "--model.old_velocity", "auto") == 0


@pytest.mark.parametrize("decided", [None, "stored", "recomputed"])
def test_what_was_decided_holds_for_equal_rows_alone(decided):
    """A resumed run may ask for other batches, of which nothing was measured."""
    auto = OldPolicy("auto")
    auto.load_state_dict({} if decided is None else {"decided": decided})
    assert auto.keeps(8, 8) == (decided != "recomputed")
    assert not auto.keeps(8, 4)


def test_a_smaller_last_batch_has_other_rows():
    assert (rows_a_call(8, 4), rows_a_call(8, 8), rows_a_call(4, 8)) == (4, 8, 4)
    assert rows_a_call(10, 4) == 0
    assert not OldPolicy("auto").keeps(rows_a_call(10, 4), 4)


def test_the_decision_is_that_of_all_ranks():
    """What one rank measures exceeds the range, what both measure does not."""
    mine = [{"noise_floor": torch.tensor([8e-5]), "step": torch.tensor([0])}]

    def gather(rows: torch.Tensor) -> torch.Tensor:
        other = torch.zeros_like(rows)
        other[1, 0] = 3
        return torch.stack([rows, other])

    both, alone = OldPolicy("auto"), OldPolicy("auto")
    both.decide(mine, 1e-4, 1, gather)
    alone.decide(mine, 1e-4, 1, lambda rows: rows.unsqueeze(0))
    assert (both.decided, alone.decided) == ("stored", "recomputed")


def test_a_range_that_is_not_known_yet_allows_no_rounding():
    auto = GRPOGuard(clip_range="auto")
    limit = rounding_limit(auto, 64)
    for size, too_high in ((0.0, False), (1e-9, True)):
        outputs = [{"log_ratio": torch.tensor([size]), "step": torch.tensor([0])}]
        line, found = noise_floor(outputs, limit, 1, lambda rows: rows.unsqueeze(0))
        assert found == too_high
        assert line.endswith("no clip range yet")
    assert rounding_limit(GRPOGuard(1e-4), 64) == GRPOGuard(1e-4).log_bounds(64)[1]
