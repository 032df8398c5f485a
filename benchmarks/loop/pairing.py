"""Follows every denoising step and every micro-batch of a run with a bare call of the same shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from benchmarks.loop.ledger import BARE, HARNESS, ZERO, Clocks, Ledger
from guardlit.objective import Objective
from guardlit.rounds.experience import Experience
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.scoring import Scoring

PHASES = {"rollout": "rollout", "update": "update"}
MODEL = "model"


@dataclass
class Round:
    """The times of one round.

    Attributes:
        pairs: by phase, for each step or micro-batch the run's time since the previous one and the bare call's time.
        spent: by phase and name, CPU seconds and seconds; without the bare calls.
    """

    pairs: dict[str, list[tuple[Clocks, Clocks]]] = field(default_factory=lambda: {"rollout": [], "update": []})
    spent: dict[tuple[str, str], Clocks] = field(default_factory=dict)


class Bare:
    """A loop of the model alone: a LoRA-wrapped transformer in eager mode, float32.

    Args:
        transformer: with its adapter, of the same size as the run's, but a separate one.
    """

    def __init__(self, transformer: torch.nn.Module) -> None:
        self._transformer = transformer
        self._inputs: Any = None

    def like(self, args: Any, kwargs: Any) -> None:
        """Copy the inputs of the run's last call."""

        def copied(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.detach().float().clone() if value.is_floating_point() else value.clone()

        self._inputs = tree_map(copied, (args, kwargs))

    def _velocity(self) -> Tensor:
        args, kwargs = self._inputs
        velocity: Tensor = self._transformer(*args, **kwargs)[0]
        return velocity

    def rollout(self) -> None:
        """One call without gradient."""
        with torch.no_grad():
            self._velocity()

    def update(self) -> None:
        """One forward and backward pass, accumulated."""
        self._velocity().square().mean().backward()


class Pairing(pl.Callback):
    """Times a run and the bare calls in it.

    Args:
        bare: the loop to compare with.
        ledger: where the time goes.
    """

    def __init__(self, bare: Bare, ledger: Ledger) -> None:
        self._bare, self._ledger = bare, ledger
        self._call: tuple[Any, Any] = ((), {})
        self._marks = {"rollout": ZERO, "update": ZERO}
        self.rounds: list[Round] = []
        self._round: Round | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Move to the front, so that the time of other callbacks is measured."""
        trainer.callbacks.sort(key=lambda callback: callback is not self)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give every part of the run its name."""
        module: Any = pl_module
        self._watch_model(module.policy.transformer)
        parts: list[tuple[Any, str, str]] = [
            (trainer.precision_plugin, "backward", MODEL),
            (trainer.precision_plugin, "clip_gradients", "clipping"),
            (module, "training_step", "training step"),
            (module.policy, "decode", "VAE"),
            (trainer.optimizers[0], "step", "optimizer"),
            (Objective, "__call__", "objective"),
            (NoiseSource, "draw", "noise"),
            (Experience, "take", "micro-batch"),
            (Scoring, "submit", "scoring"),
            (Scoring, "gather", "scoring"),
            (trainer, "save_checkpoint", "checkpoint"),
            (module, "log_dict", "logging"),
            *((logger, method, "logging") for logger in trainer.loggers for method in ("log_metrics", "save")),
        ]
        for owner, method, name in parts:
            self._ledger.wrap(owner, method, name)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            self._watch_callback(callback)
        validation = trainer.fit_loop.epoch_loop.val_loop
        self._in_phase(validation, "run", "validation")
        self._follow_rounds(module)

    def _watch_model(self, transformer: Any) -> None:
        forward: Callable[..., Any] = transformer.forward

        def charged(*args: Any, **kwargs: Any) -> Any:
            self._call = args, kwargs
            with self._ledger.spend(MODEL):
                return forward(*args, **kwargs)

        transformer.forward = charged

    def _watch_callback(self, callback: pl.Callback) -> None:
        if callback is self:
            return
        for hook in (name for name in dir(pl.Callback) if name.startswith("on_")):
            if getattr(type(callback), hook) is not getattr(pl.Callback, hook):
                self._ledger.wrap(callback, hook, type(callback).__name__)

    def _in_phase(self, owner: Any, method: str, phase: str) -> None:
        call: Callable[..., Any] = getattr(owner, method)

        def followed(*args: Any, **kwargs: Any) -> Any:
            before = self._ledger.enter(phase)
            try:
                return call(*args, **kwargs)
            finally:
                self._ledger.enter(before)

        setattr(owner, method, followed)

    def _follow_rounds(self, module: Any) -> None:
        collect: Callable[..., Any] = module.collect

        def followed(*args: Any, **kwargs: Any) -> Any:
            self._close()
            self._round = Round()
            self._ledger.enter("rollout")
            try:
                return collect(*args, **kwargs)
            finally:
                self._ledger.enter("update")

        module.collect = followed

    def on_phase(self, trainer: pl.Trainer, phase: str, done: int, total: int) -> None:
        """After a denoising step or a micro-batch, make the bare call."""
        if phase not in PHASES or self._round is None or self._ledger.phase != PHASES[phase]:
            return
        now = self._ledger.of_run(phase)
        real, self._marks[phase] = now - self._marks[phase], now
        with self._ledger.spend(HARNESS):
            self._bare.like(*self._call)
            before = self._ledger.spent[phase, BARE]
            with self._ledger.spend(BARE):
                getattr(self._bare, phase)()
            self._round.pairs[phase].append((real, self._ledger.spent[phase, BARE] - before))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the last round, after its checkpoint."""
        self._close()
        self._ledger.enter("end")

    def _close(self) -> None:
        self._ledger.charge()
        if self._round is not None:
            self._round.spent = {
                key: clocks
                for key, clocks in self._ledger.spent.items()
                if key[0] in PHASES and key[1] not in (BARE, HARNESS)
            }
            self.rounds.append(self._round)
        for key in [key for key in self._ledger.spent if key[0] in PHASES]:
            del self._ledger.spent[key]
        self._marks = {"rollout": ZERO, "update": ZERO}
