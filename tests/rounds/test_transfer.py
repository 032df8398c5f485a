"""Trajectories that rest on the host, and noise that another thread draws: the same numbers."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
import torch
from runs import config, differing, guardlit, newest
from watching import raise_after

from guardlit.devices.transfer import Trajectories
from guardlit.rounds.noise import INITIAL, NoiseSource
from guardlit.types import Trajectory

CPU = torch.device("cpu")
PLACES = [([4, 2, 7], INITIAL), ([4, 2], 0), ([7], 1), ([4, 2, 7], 2)]


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("velocities", [True, False])
def test_rows_come_back_as_they_were_put(place: str, velocities: bool):
    x, v = torch.randn(6, 3, 4, 8, 8), torch.randn(6, 3, 4, 8, 8)
    batches = [Trajectory(x[i : i + 2], v[i : i + 2] if velocities else None, x[i : i + 2, 0]) for i in (0, 2, 4)]
    kept = Trajectories.room(6, batches[0], place)
    for i, batch in enumerate(batches):
        kept.put(2 * i, batch)
    index = torch.tensor([[5, 0, 3, 0], [2, 1, 0, 0]])
    latents, velocity = kept.take(index, index)
    assert torch.equal(latents, x[index[0], index[1]])
    assert (velocity is not None) == velocities
    if velocity is not None:
        assert torch.equal(velocity, v[index[0], index[1]])


def test_a_run_with_trajectories_on_the_host_is_the_same(sd3_folder, tmp_path, monkeypatch):
    """Also one that is taken up in the middle of a round with them elsewhere: they are no part of what a run is."""
    path = config(tmp_path, sd3_folder, trainer__max_epochs=2)
    assert guardlit("fit", "--config", path) == 0
    undisturbed, runs = newest(tmp_path / "runs"), tmp_path / "host"
    host = ("--config", path, "--trainer.default_root_dir", runs, "--model.rollout.trajectories", "host")
    places: list[str] = []
    original = Trajectories.take

    def take(self, *index):
        places.append(self.place)
        return original(self, *index)

    monkeypatch.setattr(Trajectories, "take", take)
    raise_after(monkeypatch, "on_train_batch_end", 22)
    assert guardlit("fit", *host) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert set(places) == {"host"}
    saved = runs / "version_0/checkpoints/interrupted.ckpt"
    assert guardlit("fit", *host, "--ckpt_path", saved, "--model.rollout.trajectories", "device") == 0
    assert differing(undisturbed, newest(runs, "round*.ckpt")) == []


def test_noise_drawn_ahead_is_the_same_noise():
    source = NoiseSource(3, 5, (4, 8, 8))
    plain = list(source.ahead(PLACES, CPU))
    assert len(plain) == 4
    for drawn in (plain, list(source.ahead(PLACES, CPU, threaded=True))):
        for (samples, step), noise in zip(PLACES, drawn, strict=True):
            assert torch.equal(noise, source.draw(samples, step))
    assert list(source.ahead([], CPU, threaded=True)) == []


def test_another_thread_draws_one_place_ahead_and_goes_away(monkeypatch: pytest.MonkeyPatch):
    drawn: list[tuple[int, bool]] = []
    ready = threading.Event()
    original = NoiseSource.draw

    def draw(self, samples, step, pinned=False):
        drawn.append((step, threading.current_thread() is threading.main_thread()))
        if step == 0:
            ready.set()
        return original(self, samples, step, pinned)

    monkeypatch.setattr(NoiseSource, "draw", draw)
    noises = NoiseSource(3, 5, (4, 8, 8)).ahead(PLACES, CPU, threaded=True)
    next(noises)
    assert ready.wait(10)  # step 0 is drawn before it is asked for
    assert not any(step == 1 for step, _ in drawn)
    noises.close()
    assert not any(here for _, here in drawn)
    assert not any(thread.name.startswith("noise") for thread in threading.enumerate())


def test_a_rollout_s_numbers_do_not_depend_on_who_draws(sd3_folder: Path, tmp_path, monkeypatch):
    original = NoiseSource.ahead
    path = config(tmp_path, sd3_folder, trainer__max_epochs=1)
    assert guardlit("fit", "--config", path) == 0
    threads: list[int] = []

    def threaded(self, places, device):
        threads.append(len(places))
        return original(self, places, device, threaded=True)

    monkeypatch.setattr(NoiseSource, "ahead", threaded)
    runs = tmp_path / "threaded"
    assert guardlit("fit", "--config", path, "--trainer.default_root_dir", runs) == 0
    assert threads
    assert differing(newest(tmp_path / "runs"), newest(runs)) == []
