"""What the last line of a failed run names; without a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.training.recovery.rollback import Rollback
from guardlit.training.recovery.signals import Interrupted, SignalGuard


@pytest.fixture
def trainer(tmp_path: Path) -> SimpleNamespace:
    """What the guard reads of a Trainer after four updates: the newer of its two checkpoints is NaN."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for age, (name, value) in enumerate({"good": 1.0, "broken": torch.nan}.items()):
        torch.save({"state_dict": {"a": torch.tensor(value)}}, folder / f"{name}.ckpt")
        os.utime(folder / f"{name}.ckpt", (1e9 + age, 1e9 + age))
    made: list[Path] = []
    return SimpleNamespace(
        callbacks=[],
        checkpoint_callbacks=[SimpleNamespace(dirpath=str(folder))],
        ckpt_path=None,
        global_step=4,
        log_dir=str(tmp_path),
        made=made,
        save_checkpoint=made.append,
        should_stop=False,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        global_rank=0,
        world_size=1,
    )


def said(guard: SignalGuard, trainer: SimpleNamespace, error: Exception) -> str:
    """The error's message after the guard has seen it."""
    guard.on_exception(trainer, None, error)  # type: ignore[arg-type]
    return str(error)


def test_a_failing_reward_saves_the_round(trainer: SimpleNamespace):
    guard = SignalGuard()
    guard.on_phase(trainer, "encode", 0, 1)  # type: ignore[arg-type]
    path = Path(trainer.log_dir) / "checkpoints/interrupted.ckpt"
    message = said(guard, trainer, GuardlitError("the server is gone"))
    assert message == f"the server is gone; resume with --ckpt_path {path}"
    assert trainer.made == [path]


def test_another_error_names_the_last_checkpoint_and_saves_nothing(trainer: SimpleNamespace):
    folder = Path(trainer.log_dir) / "checkpoints"
    message = said(SignalGuard(), trainer, GuardlitError("a bug"))
    assert message == f"a bug; the last good checkpoint is {folder / 'broken.ckpt'}"
    message = said(SignalGuard(), trainer, NonFiniteError("the loss is nan"))
    assert message == f"the loss is nan; the last good checkpoint is {folder / 'good.ckpt'}"
    assert said(SignalGuard(), trainer, RuntimeError("a library's")) == "a library's"
    assert trainer.made == []


def test_a_callback_that_keeps_checkpoints_answers_for_divergence_alone(trainer: SimpleNamespace):
    trainer.callbacks = [Rollback()]
    assert said(SignalGuard(), trainer, NonFiniteError("the loss is nan")) == "the loss is nan"
    assert "the last good checkpoint is" in said(SignalGuard(), trainer, GuardlitError("a bug"))


def test_a_signal_stops_at_the_next_place_and_is_given_up_on_close(trainer: SimpleNamespace, monkeypatch):
    guard, before = SignalGuard(), signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr("guardlit.training.recovery.signals.requeue_signal", lambda trainer: None)
    guard.setup(trainer, None, "fit")  # type: ignore[arg-type]
    try:
        guard.on_phase(trainer, "rollout", 0, 10)  # type: ignore[arg-type]
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)  # schedulers repeat it
        with pytest.raises(Interrupted, match=r"^stopped by SIGUSR1 at update 4; resume with --ckpt_path \S+$") as stop:
            guard.on_phase(trainer, "rollout", 1, 10)  # type: ignore[arg-type]
        assert stop.value.signum == signal.SIGUSR1
    finally:
        guard.close()
    assert signal.getsignal(signal.SIGUSR1) is before
