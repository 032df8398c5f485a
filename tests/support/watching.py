"""The outputs of a run, and a signal to it at one place."""

from __future__ import annotations

import signal

import pytest
from torch import Tensor

from guardlit.training.module import GRPOModule


def seen_outputs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """Collects what `training_step` returns."""
    outputs: list[dict[str, Tensor]] = []
    original = GRPOModule.training_step

    def step(self: GRPOModule, batch: object, batch_idx: int) -> dict[str, Tensor]:
        out = original(self, batch, batch_idx)
        outputs.append({k: v.detach().clone() for k, v in out.items()})
        return out

    monkeypatch.setattr(GRPOModule, "training_step", step)
    return outputs


def raise_after(monkeypatch: pytest.MonkeyPatch, hook: str, count: int) -> None:
    """Send SIGTERM to this process just before the guard's hook is called for the `count`-th time."""
    from guardlit.training.recovery.signals import SignalGuard

    original = getattr(SignalGuard, hook)
    calls = {"n": 0}

    def counted(self: SignalGuard, *args: object) -> None:
        if hook == "on_train_batch_end" or args[1] == "rollout":
            calls["n"] += 1
            if calls["n"] == count:
                signal.raise_signal(signal.SIGTERM)
        original(self, *args)

    monkeypatch.setattr(SignalGuard, hook, counted)
