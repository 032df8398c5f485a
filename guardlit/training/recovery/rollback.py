"""Restores the last good checkpoint when gold, reward or gradient diverge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning.pytorch as pl
from guardlit_callbacks.tools.learning_rates import scale_learning_rates
from guardlit_callbacks.tools.lightning import MisconfigurationException
from guardlit_callbacks.tools.logging import log_scalars
from lightning.pytorch.callbacks import Checkpoint

from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.processes.world import World
from guardlit.rounds.round_rewards import AVERAGE
from guardlit.training.recovery.restart import checkpoint_folder

if TYPE_CHECKING:
    from guardlit_callbacks import GradientSpikes

    from guardlit.training.module import GRPOModule


UNCONFIRMED = "unconfirmed.ckpt"
"""The file of a checkpoint whose weights have not proved good yet."""


class Rollback(Checkpoint):
    """Restores the last good checkpoint when training diverges, or stops the run with that checkpoint's name.

    A run diverges when
    - `gold`, in a validation, has fallen from its best so far by more than `max_gold_drop` of it;
    - a round's mean reward has fallen from the best round's by more than `max_reward_drop` of that round's standard
      deviations;
    - `GradientSpikes` saw a gradient of more than `max_spike` medians;
    - it stops over NaN or infinity: in an update that is not skipped, in a rollout, in a validation.

    A good checkpoint is one that this callback writes, `checkpoints/good_STEP.ckpt`, right after a validation whose
    gold has not fallen that far. Without `gold` it is one from the end of a round, once the next round, drawn with its
    weights, has a reward that has not.

    A rollback restarts the fit from there within the same process: weights, optimizer, averages, callbacks and the
    position in the data are the checkpoint's. Prompts and noise are a function of seed and round, so the same run would
    diverge again; what differs is the learning rate, `lr_factor` times the one before at each rollback. If nothing good
    was written since the last rollback, the next one takes the checkpoint before, if there is one. The logs keep the
    steps that are made twice; later checkpoints are renamed to `NAME.ckpt.exploded`. Needs `guardlit.Trainer`, which
    `guardlit fit` has.

    Lightning calls a `Checkpoint` after all other callbacks, so a good checkpoint holds their state after the
    validation. Logged after each validation:

    | key | unit |
    |---|---|
    | `rollback/count` | rollbacks of the run so far |

    Args:
        action: `rollback`, or `stop` with one line that names the checkpoint and what to change.
        gold: logged key of a gold score, higher is better, such as `GoldScore` logs; null to watch none.
        max_gold_drop: fraction of the best gold score.
        max_reward_drop: standard deviations of a round's rewards; null to watch none.
        max_spike: medians; needs `GradientSpikes`. Null to watch none, since clipping already bounds what one does.
        lr_factor: of every learning rate at a rollback, in (0, 1).
        max_rollbacks: of a run; the next divergence stops it.
        keep: good checkpoints to keep, at least 2.

    Raises:
        GuardlitError: an argument is out of range, or the run lacks what is to be watched.
    """

    keeps_own_checkpoints = True
    """Tells `SignalGuard` that this callback answers a `NonFiniteError`."""

    def __init__(
        self,
        action: Literal["rollback", "stop"] = "rollback",
        gold: str | None = "gold/average",
        max_gold_drop: float = 0.2,
        max_reward_drop: float | None = 3.0,
        max_spike: float | None = None,
        lr_factor: float = 0.5,
        max_rollbacks: int = 2,
        keep: int = 2,
    ) -> None:
        if not 0 < lr_factor < 1:
            raise GuardlitError(
                f"Rollback: lr_factor={lr_factor} must lie between 0 and 1: the same run diverges again"
            )
        if max_rollbacks < 1 or keep < 2:
            raise GuardlitError(f"Rollback: max_rollbacks={max_rollbacks} must be at least 1, keep={keep} at least 2")
        for name, limit in (("gold", max_gold_drop), ("reward", max_reward_drop)):
            if limit is not None and not limit > 0:
                raise GuardlitError(f"Rollback: max_{name}_drop={limit} must be positive")
        if max_spike is not None and not max_spike > 1:
            raise GuardlitError(f"Rollback: max_spike={max_spike} must exceed 1 median")
        self.action, self.gold, self.lr_factor = action, gold, lr_factor
        self.max_gold_drop, self.max_reward_drop, self.max_spike = max_gold_drop, max_reward_drop, max_spike
        self.max_rollbacks, self.keep = max_rollbacks, keep
        self.good: list[Path] = []
        """Checkpoints that a rollback may restore, the newest last."""
        self.rollbacks = 0
        self._written: list[Path] = []
        self._unconfirmed: int | None = None  # step of the checkpoint that has not proved good yet
        self._restored: Path | None = None  # by the last rollback, until something good was written since
        self._restarting = False
        self._reset()

    def _reset(self) -> None:
        self._scaled = 1.0  # factor of the learning rates, as of the weights in memory
        self._best_gold: float | None = None
        self._best_reward: tuple[float, float] | None = None  # mean and standard deviation
        self._round = -1

    # the fit starts or restarts -----------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget an earlier run, except on a restart."""
        if stage != "fit":
            return
        self._reset()
        self._unconfirmed = None
        if not self._restarting:
            self.rollbacks, self._restored = 0, None
            self.good = [Path(trainer.ckpt_path)] if trainer.ckpt_path else []
        self._restarting = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lower the learning rates of a checkpoint from before the rollback; refuse what cannot be watched."""
        self._modes = {module: module.training for module in pl_module.modules()}
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.gold is not None and not data.val:
            raise GuardlitError(f"Rollback: {self.gold} is to be watched, but data.val is null; or gold: null")
        if self.max_spike is not None and self._spikes(trainer) is None:
            raise GuardlitError(f"Rollback: max_spike={self.max_spike} needs guardlit_callbacks.GradientSpikes")
        factor = self.lr_factor**self.rollbacks / self._scaled
        if factor != 1:
            scale_learning_rates(trainer, factor)
            self._scaled *= factor
        if self.gold is None and not self.good:
            self._save(trainer)

    # what is watched ----------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the gold score with the best; keep a good checkpoint."""
        if self.gold is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.gold not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"Rollback: {self.gold!r} was not logged in validation; add guardlit_callbacks.GoldScore, or gold: null"
            )
        value, best = float(trainer.callback_metrics[self.gold]), self._best_gold
        if best is not None and not value >= best - self.max_gold_drop * abs(best):
            fell = f"{self.gold} fell from {best:.4g} to {value:.4g}, by more than max_gold_drop={self.max_gold_drop}"
            self._diverged(trainer, f"{fell} of it")
        self._best_gold = value if best is None else max(value, best)
        log_scalars(trainer, {"rollback/count": float(self.rollbacks)}, trainer.global_step)
        self._save(trainer)
        self._confirm(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compare a new round's rewards with the best round's, before its first update."""
        module = cast("GRPOModule", pl_module)
        if module.experience.round.index == self._round:
            return
        self._round = module.experience.round.index
        if self.max_reward_drop is not None:
            name, metrics = module.reward.name, module.round_metrics
            self._check_reward(trainer, f"{AVERAGE}{name}", metrics[f"{AVERAGE}{name}"], metrics[f"reward/{name}_std"])
        self._confirm(trainer)

    def _check_reward(self, trainer: pl.Trainer, name: str, mean: float, std: float) -> None:
        if self._best_reward is not None:
            best, best_std = self._best_reward
            if not mean >= best - cast(float, self.max_reward_drop) * best_std:
                fell = f"{name} fell from {best:.4g} to {mean:.4g} in round {self._round + 1}"
                limit = f"max_reward_drop={self.max_reward_drop} standard deviations ({best_std:.2g}) of that round"
                self._diverged(trainer, f"{fell}, by more than {limit}")
        if self._best_reward is None or mean > self._best_reward[0]:
            self._best_reward = mean, std

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Compare an update's gradient with its median."""
        spikes = self._spikes(trainer) if self.max_spike is not None else None
        ratio = spikes.last_ratio if spikes is not None else None
        if ratio is not None and math.isfinite(ratio) and ratio > cast(float, self.max_spike):
            limit = f"max_spike={self.max_spike}"
            self._diverged(trainer, f"the gradient was {ratio:.3g} times its median, more than {limit}")

    @staticmethod
    def _spikes(trainer: pl.Trainer) -> GradientSpikes | None:
        from guardlit_callbacks import GradientSpikes

        found = (c for c in trainer.callbacks if isinstance(c, GradientSpikes))  # type: ignore[attr-defined]
        return next(found, None)

    def _diverged(self, trainer: pl.Trainer, what: str) -> None:
        World.of(trainer).raise_on_all(NonFiniteError(f"{what}, at update {trainer.global_step}"))

    # checkpoints --------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Without gold, save after each round: the next one's rewards tell whether it is good."""
        if self.gold is None:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the last round's checkpoint, which no further round confirms."""
        if self._unconfirmed is not None:
            trainer.strategy.remove_checkpoint(checkpoint_folder(trainer) / UNCONFIRMED)

    def _save(self, trainer: pl.Trainer) -> None:
        """Save the present state, which has not proved good yet."""
        trainer.save_checkpoint(checkpoint_folder(trainer) / UNCONFIRMED, weights_only=False)
        self._unconfirmed = trainer.global_step

    def _confirm(self, trainer: pl.Trainer) -> None:
        """Keep the last checkpoint as a good one, and remove the oldest."""
        if self._unconfirmed is None:
            return
        path = checkpoint_folder(trainer) / f"good_{self._unconfirmed}.ckpt"
        self._unconfirmed = None
        trainer.strategy.remove_checkpoint(path)  # from before a rollback
        if trainer.is_global_zero:
            (path.parent / UNCONFIRMED).replace(path)
        self.good = [*(p for p in self.good if p != path), path]
        self._written = [*(p for p in self._written if p != path), path]
        self._restored = None
        while len(self._written) > self.keep:
            old = self._written.pop(0)
            self.good = [p for p in self.good if p != old]
            trainer.strategy.remove_checkpoint(old)

    # the divergence -----------------------------------------------------------------------------------------------

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Name the checkpoint in the error; restore the modules' modes, which a failed validation leaves wrong."""
        if not isinstance(exception, NonFiniteError) or trainer.state.fn != "fit":
            return
        for module, training in getattr(self, "_modes", {}).items():
            module.training = training
        if self._restored is not None and len(self.good) > 1:  # nothing good was written since
            self.good = [p for p in self.good if p != self._restored]
        if not self.good:
            exception.args = (f"{exception}; no good checkpoint was written yet: lower the learning rate",)
            return
        target, left = self.good[-1], self.max_rollbacks - self.rollbacks
        if self.action == "rollback" and left > 0:
            exception.restart_from = str(target)
            self._restored, self._restarting = target, True
            self.rollbacks += 1
            rates = f"learning rates x {self.lr_factor**self.rollbacks:g} of the run's"
            exception.args = (
                f"{exception}; back to {target}, {rates}, rollback {self.rollbacks} of {self.max_rollbacks}",
            )
        else:
            spent = f" after {self.rollbacks} rollbacks" if self.rollbacks else ""
            how = f"resume with --ckpt_path {target} and a lower learning rate or a narrower clip range"
            exception.args = (f"{exception}{spent}; {how}",)

    def state_dict(self) -> dict[str, Any]:
        """The best scores so far, and the factor of the learning rates; the same on every rank."""
        best = {"gold": self._best_gold, "reward": self._best_reward}
        return {"rollbacks": self.rollbacks, "scaled": self._scaled, "round": self._round, **best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them; rollbacks that this process has made since then stay counted."""
        self.rollbacks = max(self.rollbacks, state_dict["rollbacks"])
        self._scaled, self._round = state_dict["scaled"], state_dict["round"]
        self._best_gold = state_dict["gold"]
        self._best_reward = None if state_dict["reward"] is None else tuple(state_dict["reward"])
