"""A resumed run is the undisturbed one, bit for bit."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import config, differing, guardlit, newest, start
from watching import raise_after

from guardlit.training.recovery.signals import Interrupted

UPDATES = 12  # 3 rounds of 4


@pytest.fixture(scope="module", params=["lora", "full"])
def undisturbed(request: pytest.FixtureRequest, sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A whole run with a checkpoint after every update and every round; its YAML and checkpoints by name.

    Its reward is continuous. One that counts bytes makes of the last bit of a weight another pixel, of the pixel
    another byte, and of the byte another advantage: then no run may be cut in another way and stay near itself.
    """
    folder = tmp_path_factory.mktemp(request.param)
    changes = {
        "model__reward": "brightness.Brightness",
        "trainer__callbacks": [{"class_path": "guardlit_callbacks.TrainableEMA"}, *_every_update_and_round()],
    }
    if request.param == "full":
        changes["model__policy__init_args__lora"] = None
        changes["model__kl"] = {"weight": 0.1}
        changes["model__policy__init_args__reference"] = True
        changes["model__old_velocity"] = "recomputed"
    path = config(folder, sd3_folder, **changes)
    assert guardlit("fit", "--config", path) == 0
    checkpoints = {p.stem: p for p in (folder / "runs/version_0/checkpoints").glob("*.ckpt")}
    assert len([name for name in checkpoints if name.startswith("update")]) == UPDATES
    return path, checkpoints


def _every_update_and_round() -> list[dict]:
    keep = {"save_top_k": -1, "auto_insert_metric_name": False}
    updates = {"filename": "update_{step}", "every_n_train_steps": 1, **keep}
    rounds = {"filename": "round_{epoch}", "every_n_epochs": 1, "save_on_train_epoch_end": True, **keep}
    return [{"class_path": "ModelCheckpoint", "init_args": init} for init in (updates, rounds)]


# in a round, at the end of an inner epoch, at the last update of a round, and after a round
@pytest.mark.parametrize("stop", ["update_1", "update_2", "update_4", "round_0", "update_7", "round_1"])
def test_a_resumed_run_equals_the_uninterrupted_one(undisturbed, stop: str, tmp_path: Path):
    path, checkpoints = undisturbed
    runs = tmp_path / "runs"
    assert guardlit("fit", "--config", path, "--ckpt_path", checkpoints[stop], "--trainer.default_root_dir", runs) == 0
    assert differing(checkpoints[f"update_{UPDATES}"], runs / f"version_0/checkpoints/update_{UPDATES}.ckpt") == []
    assert torch.load(newest(runs, "update*.ckpt"), weights_only=True)["global_step"] == UPDATES


@pytest.mark.parametrize("stop", ["update_2", "round_0"])
def test_a_run_counted_in_updates_resumes_too(undisturbed, stop: str, tmp_path: Path):
    path, checkpoints = undisturbed
    runs = tmp_path / "runs"
    counted = ("--trainer.max_epochs", -1, "--trainer.max_steps", 10, "--trainer.default_root_dir", runs)
    assert guardlit("fit", "--config", path, "--ckpt_path", checkpoints[stop], *counted) == 0
    assert differing(checkpoints["update_10"], newest(runs, "update_10*.ckpt")) == []


def test_the_comparison_can_fail(undisturbed):
    _, checkpoints = undisturbed
    assert differing(checkpoints["update_11"], checkpoints["update_12"])


@pytest.mark.parametrize("at", [2, 5, 11])
def test_a_signal_between_updates_loses_nothing(undisturbed, at: int, tmp_path: Path, monkeypatch, capsys):
    """SIGTERM in the middle of an accumulation: the partly accumulated gradients are in the checkpoint."""
    path, checkpoints = undisturbed
    runs = tmp_path / "runs"
    raise_after(monkeypatch, "on_train_batch_end", at)
    code = guardlit("fit", "--config", path, "--trainer.default_root_dir", runs)
    monkeypatch.undo()
    assert code == 128 + signal.SIGTERM
    saved = runs / "version_0/checkpoints/interrupted.ckpt"
    assert f"resume with --ckpt_path {saved}" in capsys.readouterr().err
    assert bool(torch.load(saved, weights_only=True)["guardlit"].get("gradients")) == (at % 4 != 0)
    assert guardlit("fit", "--config", path, "--ckpt_path", saved, "--trainer.default_root_dir", runs) == 0
    assert differing(checkpoints[f"update_{UPDATES}"], newest(runs, f"update_{UPDATES}*.ckpt")) == []


def test_a_signal_behind_the_guard_s_back_waits_for_it(undisturbed, tmp_path: Path, monkeypatch):
    """One that comes once the guard has looked, and before Lightning does: the next micro-batch is the last."""
    from guardlit.training.module import GRPOModule

    path, checkpoints = undisturbed
    runs, calls = tmp_path / "runs", []
    original = GRPOModule.on_train_batch_end

    def counted(self: GRPOModule, *args: object) -> None:
        original(self, *args)
        calls.append(args)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(GRPOModule, "on_train_batch_end", counted)
    assert guardlit("fit", "--config", path, "--trainer.default_root_dir", runs) == 128 + signal.SIGTERM
    monkeypatch.undo()
    assert len(calls) == 5  # the guard stopped the sixth before the module's own hook
    saved = runs / "version_0/checkpoints/interrupted.ckpt"
    assert guardlit("fit", "--config", path, "--ckpt_path", saved, "--trainer.default_root_dir", runs) == 0
    assert differing(checkpoints[f"update_{UPDATES}"], newest(runs, f"update_{UPDATES}*.ckpt")) == []


@pytest.mark.parametrize("at", [1, 12])
def test_a_signal_during_a_rollout_starts_the_round_again(undisturbed, at: int, tmp_path: Path, monkeypatch):
    path, checkpoints = undisturbed
    runs = tmp_path / "runs"
    raise_after(monkeypatch, "on_phase", at)
    assert guardlit("fit", "--config", path, "--trainer.default_root_dir", runs) == 128 + signal.SIGTERM
    monkeypatch.undo()
    saved = runs / "version_0/checkpoints/interrupted.ckpt"
    assert guardlit("fit", "--config", path, "--ckpt_path", saved, "--trainer.default_root_dir", runs) == 0
    assert differing(checkpoints[f"update_{UPDATES}"], newest(runs, f"update_{UPDATES}*.ckpt")) == []


def test_after_sigkill_the_last_checkpoint_continues_the_run(undisturbed, tmp_path: Path):
    path, checkpoints = undisturbed
    runs = tmp_path / "runs"
    here = os.pathsep.join(sys.path)  # for the reward
    process = start("fit", "--config", path, "--trainer.default_root_dir", runs, PYTHONPATH=here)
    deadline = time.monotonic() + 120
    while not list(runs.rglob("update_[5-9]*.ckpt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert guardlit("fit", "--config", path, "--ckpt_path", "last", "--trainer.default_root_dir", runs) == 0
    assert differing(checkpoints[f"update_{UPDATES}"], newest(runs, f"update_{UPDATES}*.ckpt")) == []


def test_interrupted_is_no_plain_error():
    assert not issubclass(Interrupted, KeyboardInterrupt)


@pytest.mark.parametrize("stop", ["update_2", "round_1"])
def test_a_round_may_be_cut_in_another_way(undisturbed, stop: str, tmp_path: Path):
    """Micro-batches of 8 where they were of 4: the same updates, but for rounding.

    Two rounds later a weight may differ by the share of an AdamW step, at most the learning rate of 1e-3, that follows
    from a pixel rounded otherwise, which moves the reward by one gray level of one value.
    """
    path, checkpoints = undisturbed
    other = ("--config", path, "--data.micro_batch", 8, "--trainer.default_root_dir", tmp_path / "runs")
    assert guardlit("fit", *other, "--ckpt_path", checkpoints[stop]) == 0
    ours = torch.load(newest(tmp_path / "runs", f"update_{UPDATES}*.ckpt"), weights_only=True)
    theirs = torch.load(checkpoints[f"update_{UPDATES}"], weights_only=True)
    assert ours["global_step"] == theirs["global_step"] == UPDATES
    for name, value in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], value, rtol=1e-4, atol=1e-4)
