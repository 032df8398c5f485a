"""What the module adds to a checkpoint and restores from it."""

from __future__ import annotations

from typing import Any, NoReturn

import lightning.pytorch as pl
from torch import Tensor

from guardlit.checkpoints import contents, unfinished
from guardlit.errors import GuardlitError
from guardlit.policies.base import FlowPolicy
from guardlit.processes.lightning_internals import is_within_batch, move_within_epoch
from guardlit.processes.world import World
from guardlit.rounds.old_policy import OldPolicy
from guardlit.rounds.settings import Rollout, Sampling
from guardlit.sde import SDE
from guardlit.training.recovery.nonfinite import NonFiniteGuard
from guardlit.training.update.penalty import Penalty


class CheckpointHooks(pl.LightningModule):
    """Checkpoint hooks; a base class of the module.

    Attributes:
        policy: whose trainable weights are kept, within a round also the old policy's.
        sde: sampler, part of the fingerprint.
        rollout: part of the fingerprint.
        evaluation: part of the fingerprint.
        old: whose decision is kept.
        nonfinite: whose counts are kept.
        penalty: whose gate and renewed reference are kept.
        outputs: of the update in progress, by micro-batch.
        clips: clip fractions of the round's updates so far, () each.
    """

    policy: FlowPolicy
    sde: SDE
    rollout: Rollout
    evaluation: Sampling
    old: OldPolicy
    nonfinite: NonFiniteGuard
    penalty: Penalty
    outputs: list[dict[str, Tensor]]
    clips: list[Tensor]
    _restored_gradients: dict[str, Tensor]

    @classmethod
    def load_from_checkpoint(cls, *_: Any, **__: Any) -> NoReturn:
        """Not supported: a checkpoint holds what trains, and settings are in the run's `config.yaml`.

        Raises:
            GuardlitError: always; says what to do.
        """
        raise GuardlitError(
            f"{cls.__name__}.load_from_checkpoint: a checkpoint holds what trains, and no settings: build the module "
            "as for training, and give ckpt_path to Trainer.fit, validate, sample or export"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep trainable weights; within a round also the old policy and the gradients accumulated so far.

        Raises:
            GuardlitError: within a micro-batch, from where no run could resume.
        """
        if is_within_batch(self.trainer):
            raise GuardlitError(
                "a checkpoint within a micro-batch cannot be resumed: call save_checkpoint from on_train_batch_end on"
            )
        finished = self.trainer.datamodule.finished_rounds  # type: ignore[attr-defined]
        part: dict[str, Any] = {"fingerprint": self._fingerprint(), "nonfinite": self.nonfinite.state_dict()}
        part["old_velocity"] = self.old.state_dict()
        part |= self.penalty.state(self.policy)
        if finished is None:
            part["old"] = self.policy.old_state()
            part["clips"] = [clip.cpu() for clip in self.clips]
        part |= unfinished.unfinished_update(self, self.outputs, World.of(self.trainer))
        contents.complete(checkpoint, dict(self.named_parameters()), self.trainer.optimizers, part, finished)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another run; restore what Lightning does not."""
        fitting = self.trainer.state.fn == "fit"
        expected = self._fingerprint() if fitting else self.policy.fingerprint()
        part = contents.check_fingerprint(checkpoint, expected)
        if "old" in part:
            self.policy.load_old_state(part["old"])
        if not fitting:
            return
        self.nonfinite.load_state_dict(part.get("nonfinite", {}))
        self.old.load_state_dict(part.get("old_velocity", {}))
        self.penalty.load(part, self.policy)
        self.clips = list(part.get("clips", []))
        place = (self.trainer.global_rank, self.trainer.world_size)
        self.outputs = unfinished.outputs_of(part, *place)
        self._restored_gradients = unfinished.gradients_of(part, *place, sharded=self.device_mesh is not None)
        move_within_epoch(checkpoint, self.trainer.datamodule.position_in(checkpoint))  # type: ignore[attr-defined]

    def restore_update(self) -> None:
        """Restore the update in progress, once the module is on its device."""
        unfinished.restore_gradients(dict(self.named_parameters()), getattr(self, "_restored_gradients", {}))
        self._restored_gradients = {}
        self.outputs = [{k: v.to(self.device) for k, v in output.items()} for output in self.outputs]
        self.clips = [clip.to(self.device) for clip in self.clips]

    def _fingerprint(self) -> dict[str, str]:
        data = self.trainer.datamodule.fingerprint()  # type: ignore[attr-defined]
        return contents.fingerprint(self.policy.fingerprint(), self.sde, self.rollout, self.evaluation, data)
