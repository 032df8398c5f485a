"""Early stopping on over-optimization: the proxy reward rises while gold scores fall."""

from __future__ import annotations

import json
import math
from typing import Any, Literal, NamedTuple

from guardlit_callbacks.tools.folders import run_dir
from guardlit_callbacks.tools.learning_rates import scale_learning_rates
from guardlit_callbacks.tools.lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from guardlit_callbacks.tools.logging import log_scalars


class Evaluation(NamedTuple):
    """Scores of one validation; `noise` is half the interval of `gold`, 0 without one."""

    step: int
    proxy: float
    gold: float
    noise: float


class OverOptimizationStop(Callback):
    """Stops or slows a run, or warns, when the proxy reward rises while the gold score falls.

    Each evaluation is compared with the one of the best gold score so far. It counts as over-optimized if the proxy is
    higher by more than `min_proxy_gain`, and gold lower by more than `min_gold_drop` and by more than the noise: the
    two evaluations' half-intervals, added as independent errors. After `patience` of them in a row the callback acts
    and starts a new count; any other evaluation resets the count.

    When it acts it warns with the reason, and rank 0 writes the evaluations, the reason and the action to
    `over_optimization.json` in the run's folder. Logged after each validation:

    | key | unit |
    |---|---|
    | `over_optimization/count` | over-optimized evaluations in a row, up to this one |

    Needs `GoldScore`, or a module that logs the same keys in validation.

    Example:
        ```python
        from guardlit_callbacks import GoldScore, OverOptimizationStop
        Trainer(callbacks=[GoldScore(scorers), OverOptimizationStop(patience=3, action="lower_lr")])
        ```

    Args:
        proxy: logged key of the proxy reward, higher is better.
        gold: logged key of the gold score, higher is better.
        gold_low: logged key of the lower end of the gold score's interval; None without one.
        patience: over-optimized evaluations in a row before it acts.
        action: "stop" training; "lower_lr", multiply every learning rate by `lr_factor`; or only "warn".
        min_proxy_gain: a smaller rise of the proxy does not count, in its unit.
        min_gold_drop: a smaller fall of gold does not count, in its unit.
        lr_factor: for "lower_lr".

    Raises:
        ValueError: an argument is out of range; neither `gold_low` nor `min_gold_drop`, so that any noise would count.
        MisconfigurationException: a key was not logged in validation.
    """

    def __init__(
        self,
        proxy: str = "gold/proxy",
        gold: str = "gold/average",
        gold_low: str | None = "gold/average_low",
        patience: int = 3,
        action: Literal["stop", "lower_lr", "warn"] = "stop",
        min_proxy_gain: float = 0.0,
        min_gold_drop: float = 0.0,
        lr_factor: float = 0.1,
    ) -> None:
        if patience < 1:
            raise ValueError(f"OverOptimizationStop: patience must be at least 1 evaluation, got {patience}")
        if action not in ("stop", "lower_lr", "warn"):
            raise ValueError(f"OverOptimizationStop: action must be 'stop', 'lower_lr' or 'warn', got {action!r}")
        if not 0 < lr_factor < 1:
            raise ValueError(f"OverOptimizationStop: lr_factor must be between 0 and 1, got {lr_factor}")
        if gold_low is None and min_gold_drop <= 0:
            raise ValueError("OverOptimizationStop: without gold_low, min_gold_drop must exceed the noise")
        self.keys = {"proxy": proxy, "gold": gold} | ({"gold_low": gold_low} if gold_low is not None else {})
        self.patience, self.action, self.lr_factor = patience, action, lr_factor
        self.min_proxy_gain, self.min_gold_drop = min_proxy_gain, min_gold_drop
        self.history: list[Evaluation] = []
        self.acted_at = -1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the evaluation, and acts during `fit`."""
        if trainer.sanity_checking and self.keys["gold"] not in trainer.callback_metrics:
            return
        evaluation = self._read(trainer)
        self.history = [*(old for old in self.history if old.step < evaluation.step), evaluation]
        count = self.count()
        log_scalars(trainer, {"over_optimization/count": float(count)}, trainer.global_step)
        due = trainer.state.fn == "fit" and not trainer.sanity_checking and count >= self.patience
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self._act(trainer, count)

    def _read(self, trainer: Trainer) -> Evaluation:
        logged = trainer.callback_metrics
        for argument, key in self.keys.items():
            if key not in logged:
                raise MisconfigurationException(
                    f"OverOptimizationStop: {key!r} was not logged in validation, only "
                    f"{', '.join(sorted(logged)) or 'nothing'}; add GoldScore, or name the right key with "
                    f"OverOptimizationStop({argument}=...)"
                )
        values = {argument: float(logged[key]) for argument, key in self.keys.items()}
        noise = values["gold"] - values["gold_low"] if "gold_low" in values else 0.0
        return Evaluation(trainer.global_step, values["proxy"], values["gold"], noise)

    def best(self) -> Evaluation:
        """The evaluation of the best gold score, the earliest if several are equal."""
        return max(self.history, key=lambda e: e.gold)

    def count(self) -> int:
        """Over-optimized evaluations in a row, up to the last, since the callback last acted."""
        count, best = 0, self.history[0] if self.history else None
        for evaluation in self.history:
            best = evaluation if best is None or evaluation.gold > best.gold else best
            worse = self._is_worse(evaluation, best) and evaluation.step > self.acted_at
            count = count + 1 if worse else 0
        return count

    def _is_worse(self, now: Evaluation, best: Evaluation) -> bool:
        drop, noise = best.gold - now.gold, math.hypot(best.noise, now.noise)
        return now.proxy - best.proxy > self.min_proxy_gain and drop > max(self.min_gold_drop, noise)

    def _act(self, trainer: Trainer, count: int) -> None:
        best, now = self.best(), self.history[-1]
        does = {
            "stop": "training stops",
            "lower_lr": f"learning rates x {self.lr_factor:g}",
            "warn": "training continues",
        }
        noise = math.hypot(best.noise, now.noise)
        reason = (
            f"over-optimization: from step {best.step} to {now.step} {self.keys['proxy']} rose from {best.proxy:.4g} "
            f"to {now.proxy:.4g} while {self.keys['gold']} fell from {best.gold:.4g} to {now.gold:.4g} (noise "
            f"{noise:.2g}), {count} evaluations in a row; {does[self.action]}"
        )
        rank_zero_warn(reason)
        folder = run_dir(trainer)
        if folder and trainer.is_global_zero:
            evaluations = [evaluation._asdict() for evaluation in self.history]
            evidence = {"reason": reason, "action": self.action, "keys": self.keys, "evaluations": evaluations}
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "over_optimization.json").write_text(json.dumps(evidence, indent=2) + "\n")
        self.acted_at = now.step
        if self.action == "stop":
            trainer.should_stop = True
        elif self.action == "lower_lr":
            scale_learning_rates(trainer, self.lr_factor)

    def state_dict(self) -> dict[str, Any]:
        """The evaluations so far, and the step at which it last acted."""
        return {"history": [tuple(evaluation) for evaluation in self.history], "acted_at": self.acted_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the evaluations."""
        self.history = [Evaluation(*evaluation) for evaluation in state_dict["history"]]
        self.acted_at = state_dict["acted_at"]
