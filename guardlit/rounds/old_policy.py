"""Where the old policy's velocities come from: the rollout, the old weights asked again, or the policy itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.training.checks import noise_floor, report_noise_floor, rounding_bounds

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule
    from guardlit.types import Transition

OldVelocity = Literal["stored", "recomputed", "auto"]
FLOOR = "noise_floor"
"""Of a micro-batch's outputs, while `auto` measures: the log ratio of the policy to what the rollout stored, (B,)."""


def rows_a_call(images: int, batch: int) -> int:
    """Rows of each call of a rollout of so many images; 0 where the last one has fewer than the others."""
    batch = min(batch, images)
    return 0 if images % batch else batch


class OldPolicy:
    """Decides of each micro-batch where the old policy's velocity comes from.

    In a round's first update the weights have not moved since the rollout: the policy's own velocity is the old one's,
    to the last bit, and costs nothing. `stored` does not use that, so that the ratio shows what rounding does; nor does
    the run's first update under `recomputed`, which measures it.

    `auto` stores velocities where rollout and training ask for equally many rows at once. In the first update that it
    sees from its beginning it compares them with the policy's own, before any loss has used them, and decides for good:
    `stored` if rounding leaves the clip alone by the rule of the noise floor, else `recomputed`. A run that goes on
    with unequal rows stores none in any case: what was measured says nothing of them.

    Args:
        mode: of the configuration.
    """

    def __init__(self, mode: OldVelocity) -> None:
        self.mode = mode
        self.decided: Literal["stored", "recomputed"] | None = None
        """By `auto`; the same on every process."""
        self.first_update = 0
        """Micro-batches of the round's first update; to be set by whoever begins a round."""

    def keeps(self, rollout_rows: int, training_rows: int) -> bool:
        """Whether a rollout's velocities are to be kept, of so many rows a call in the rollout and in training."""
        if self.mode == "auto":
            return self.decided != "recomputed" and rollout_rows == training_rows
        return self.mode == "stored"

    def restores(self, state: Mapping[str, object]) -> bool:
        """Whether the velocities of a checkpoint's round are to be kept.

        Raises:
            GuardlitError: they are needed, and the checkpoint holds none.
        """
        if self.mode == "stored" and "velocity" not in state:
            raise GuardlitError(
                "model.old_velocity=stored: the checkpoint stands within a round whose velocities were not kept; go on "
                "with recomputed, or resume from the end of a round"
            )
        return self.mode == "stored" or (self.mode == "auto" and self.decided != "recomputed")

    def velocity(self, module: GRPOModule, batch: Transition, own: Tensor, batch_idx: int | None) -> Tensor:
        """The old policy's velocity, (B, C, H, W) without gradient.

        Args:
            module: that trains.
            batch: a micro-batch.
            own: the trained policy's velocity.
            batch_idx: of the micro-batch in its round; None where the weights may be any.
        """
        source = self._source(module, batch, self._on_policy(batch_idx))
        if source == "own":
            return own.detach()
        if source == "stored":
            assert batch.old_velocity is not None
            return batch.old_velocity
        return module.other_velocity(batch, "old")

    def _on_policy(self, batch_idx: int | None) -> bool:
        return batch_idx is not None and batch_idx < self.first_update

    def _source(self, module: GRPOModule, batch: Transition, on_policy: bool) -> Literal["stored", "again", "own"]:
        stored = batch.old_velocity is not None
        if self.mode == "stored":
            return "stored"
        if on_policy:
            measured_by_asking = _untouched(module) and not self._measures(batch, on_policy)
            return "again" if measured_by_asking else "own"
        return "stored" if self.decided == "stored" and stored else "again"

    def _measures(self, batch: Transition, on_policy: bool) -> bool:
        return self.mode == "auto" and self.decided is None and on_policy and batch.old_velocity is not None

    def compare(self, module: GRPOModule, batch: Transition, own: Tensor, batch_idx: int | None) -> dict[str, Tensor]:
        """What `auto` measures of a micro-batch, under `FLOOR`; nothing where it does not; arguments as `velocity`."""
        if not self._measures(batch, self._on_policy(batch_idx)):
            return {}
        assert batch.old_velocity is not None
        facts = {name: getattr(batch, name) for name in ("noise", "advantage", "gain", "std", "dt")}
        return {FLOOR: module.objective(own.detach(), batch.old_velocity, **facts).log_ratio}

    def before_update(self, module: GRPOModule) -> None:
        """Say the noise floor before the run's first update, and decide where that is still to be done. A collective.

        Args:
            module: with the outputs of the update's micro-batches; forgets velocities that are no longer needed.
        """
        steps = module.rollout.available_steps
        if all(FLOOR in output for output in module.outputs):
            self.decide(module.outputs, rounding_bounds(module.objective, module.elements), steps, module.gather)
            if self.decided == "recomputed":
                module.experience.trajectories.velocity = None
        elif _untouched(module):
            report_noise_floor(module.outputs, module.objective.log_bounds(module.elements), steps, module.gather)

    def decide(
        self,
        outputs: Sequence[Mapping[str, Tensor]],
        bounds: tuple[float, float],
        steps: int,
        gather: Callable[[Tensor], Tensor],
    ) -> None:
        """Decide from what was measured; arguments as `guardlit.training.checks.noise_floor`."""
        measured = [{"log_ratio": output[FLOOR], "step": output["step"]} for output in outputs]
        line, too_high = noise_floor(measured, bounds, steps, gather)
        self.decided = "recomputed" if too_high else "stored"
        rank_zero_info(f"{line}; old velocities are {self.decided}")

    def state_dict(self) -> dict[str, str]:
        """What was decided."""
        return {} if self.decided is None else {"decided": self.decided}

    def load_state_dict(self, state: Mapping[str, Literal["stored", "recomputed"]]) -> None:
        """Take up what a checkpoint decided; nothing where it had not."""
        self.decided = state.get("decided")


def _untouched(module: GRPOModule) -> bool:
    """Whether the run has made no update yet; those that were skipped count as steps."""
    return module.trainer.global_step == module.nonfinite.skipped
