"""Going back to a good checkpoint when gold, reward or gradient explode."""

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
from guardlit.processes.collectives import raise_on_all
from guardlit.training.restart import checkpoint_folder

if TYPE_CHECKING:
    from guardlit_callbacks import GradientSpikes

    from guardlit.training.module import GRPOModule


UNCONFIRMED = "unconfirmed.ckpt"
"""The file of a checkpoint that becomes a good one once the run has shown that it is."""


class Rollback(Checkpoint):
    """Takes a run whose numbers explode back to its last good checkpoint, or stops it with that checkpoint's name.

    A run explodes when
    - `gold`, in a validation, has fallen from its best so far by more than `max_gold_drop` of it;
    - a round's mean reward has fallen from the best round's by more than `max_reward_drop` of that round's standard
      deviations;
    - `GradientSpikes` saw a gradient of more than `max_spike` medians;
    - it stops over NaN or infinity: in an update that is not skipped, in a rollout, in a validation.

    Good is a checkpoint that this callback writes, `checkpoints/good_STEP.ckpt`, right after a validation whose gold
    has not fallen that far. Without `gold` it is one from the end of a round once the next round, drawn with its
    weights, has shown a reward that has not.

    To roll back is to begin the fit again from there within the same process: weights, optimizer, averages, callbacks
    and the place in the data are the checkpoint's. Prompts and noise are a function of seed and round, so that the same
    run would explode again; what differs is the learning rate, `lr_factor` times the one before at each rollback. Where
    nothing good was written since the last rollback, the next one goes to the checkpoint before, if there is one. The
    logs keep the steps that are taken twice; checkpoints from beyond that place are renamed to `NAME.ckpt.exploded`.
    Needs `guardlit.Trainer`, as `guardlit fit` has it.

    Logged: `rollback/count`, at each validation. Lightning calls a `Checkpoint` after all other callbacks, so that a
    good checkpoint holds what they made of the validation.

    Args:
        action: `rollback`, or `stop` with one line that names the checkpoint and what to change.
        gold: logged key of a gold score, higher is better, such as `GoldScore` logs; null to watch none.
        max_gold_drop: share of the best gold score.
        max_reward_drop: standard deviations of a round's rewards; null to watch none.
        max_spike: medians; needs `GradientSpikes`. Null to watch none, since clipping already bounds what one does.
        lr_factor: of every learning rate at a rollback, in (0, 1).
        max_rollbacks: of a run; the next explosion stops it.
        keep: good checkpoints to keep, at least 2.

    Raises:
        GuardlitError: an argument is out of range, or the run has nothing of what is to be watched.
    """

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
                f"Rollback: lr_factor={lr_factor} must lie between 0 and 1: the same run explodes again"
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
        """Checkpoints to go back to, the newest last."""
        self.rollbacks = 0
        self._written: list[Path] = []
        self._unconfirmed: int | None = None  # step of a checkpoint whose worth is not known yet
        self._back_to: Path | None = None  # where the last rollback went, until something good was written since
        self._returning = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._scaled = 1.0  # what the learning rates were multiplied by, as the weights in memory know it
        self._best_gold: float | None = None
        self._best_reward: tuple[float, float] | None = None  # mean and standard deviation
        self._round = -1

    # the fit begins, or begins again ------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget an earlier run, but not on the way back."""
        if stage != "fit":
            return
        self._begin_anew()
        self._unconfirmed = None
        if not self._returning:
            self.rollbacks, self._back_to = 0, None
            self.good = [Path(trainer.ckpt_path)] if trainer.ckpt_path else []
        self._returning = False

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
        """RewardRunner the gold score; keep what is good."""
        if self.gold is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.gold not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"Rollback: {self.gold!r} was not logged in validation; add guardlit_callbacks.GoldScore, or gold: null"
            )
        value, best = float(trainer.callback_metrics[self.gold]), self._best_gold
        if best is not None and not value >= best - self.max_gold_drop * abs(best):
            fell = f"{self.gold} fell from {best:.4g} to {value:.4g}, by more than max_gold_drop={self.max_gold_drop}"
            self._explode(trainer, f"{fell} of it")
        self._best_gold = value if best is None else max(value, best)
        log_scalars(trainer, {"rollback/count": float(self.rollbacks)}, trainer.global_step)
        self._save(trainer)
        self._confirm(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """RewardRunner the rewards of a round that was drawn just now, before an update is made of it."""
        module = cast("GRPOModule", pl_module)
        if module.experience.round.index == self._round:
            return
        self._round = module.experience.round.index
        if self.max_reward_drop is not None:
            self._judge_reward(trainer, module)
        self._confirm(trainer)

    def _judge_reward(self, trainer: pl.Trainer, module: GRPOModule) -> None:
        name = f"reward/{module.reward.name}"
        mean, std = (module.round_metrics[f"{name}_{what}"] for what in ("mean", "std"))
        if self._best_reward is not None:
            best, spread = self._best_reward
            if not mean >= best - cast(float, self.max_reward_drop) * spread:
                fell = f"{name}_mean fell from {best:.4g} to {mean:.4g} in round {self._round}"
                limit = f"max_reward_drop={self.max_reward_drop} standard deviations ({spread:.2g}) of that round"
                self._explode(trainer, f"{fell}, by more than {limit}")
        if self._best_reward is None or mean > self._best_reward[0]:
            self._best_reward = mean, std

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """RewardRunner the gradient of an update."""
        spikes = self._spikes(trainer) if self.max_spike is not None else None
        ratio = spikes.last_ratio if spikes is not None else None
        if ratio is not None and math.isfinite(ratio) and ratio > cast(float, self.max_spike):
            self._explode(
                trainer, f"the gradient was {ratio:.3g} times its median, more than max_spike={self.max_spike}"
            )

    @staticmethod
    def _spikes(trainer: pl.Trainer) -> GradientSpikes | None:
        from guardlit_callbacks import GradientSpikes

        found = (c for c in trainer.callbacks if isinstance(c, GradientSpikes))  # type: ignore[attr-defined]
        return next(found, None)

    def _explode(self, trainer: pl.Trainer, what: str) -> None:
        raise_on_all(trainer, NonFiniteError(f"{what}, at update {trainer.global_step}"))

    # checkpoints --------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Without gold, keep the round: the next one's rewards tell what it is worth."""
        if self.gold is None:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last round's checkpoint is never confirmed."""
        if self._unconfirmed is not None:
            trainer.strategy.remove_checkpoint(checkpoint_folder(trainer) / UNCONFIRMED)

    def _save(self, trainer: pl.Trainer) -> None:
        """Write the run as it is now; what it is worth is to be seen."""
        trainer.save_checkpoint(checkpoint_folder(trainer) / UNCONFIRMED, weights_only=False)
        self._unconfirmed = trainer.global_step

    def _confirm(self, trainer: pl.Trainer) -> None:
        """What was written last is good; of those before, the oldest goes."""
        if self._unconfirmed is None:
            return
        path = checkpoint_folder(trainer) / f"good_{self._unconfirmed}.ckpt"
        self._unconfirmed = None
        trainer.strategy.remove_checkpoint(path)  # of a rollback's first try
        if trainer.is_global_zero:
            (path.parent / UNCONFIRMED).replace(path)
        self.good = [*(p for p in self.good if p != path), path]
        self._written = [*(p for p in self._written if p != path), path]
        self._back_to = None
        while len(self._written) > self.keep:
            old = self._written.pop(0)
            self.good = [p for p in self.good if p != old]
            trainer.strategy.remove_checkpoint(old)

    # the explosion ------------------------------------------------------------------------------------------------

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Choose the checkpoint, and say so in the error; a validation that raised leaves the module's modes wrong."""
        if not isinstance(exception, NonFiniteError) or trainer.state.fn != "fit":
            return
        for module, training in getattr(self, "_modes", {}).items():
            module.training = training
        if self._back_to is not None and len(self.good) > 1:  # nothing good came of it
            self.good = [p for p in self.good if p != self._back_to]
        if not self.good:
            exception.args = (f"{exception}; no good checkpoint was written yet: lower the learning rate",)
            return
        target, left = self.good[-1], self.max_rollbacks - self.rollbacks
        if self.action == "rollback" and left > 0:
            exception.restart_from = str(target)
            self._back_to, self._returning = target, True
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
        """What was best so far, and how the learning rates were changed; the same on every process."""
        best = {"gold": self._best_gold, "reward": self._best_reward}
        return {"rollbacks": self.rollbacks, "scaled": self._scaled, "round": self._round, **best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; rollbacks that this process has made since then stay counted."""
        self.rollbacks = max(self.rollbacks, state_dict["rollbacks"])
        self._scaled, self._round = state_dict["scaled"], state_dict["round"]
        self._best_gold = state_dict["gold"]
        self._best_reward = None if state_dict["reward"] is None else tuple(state_dict["reward"])
