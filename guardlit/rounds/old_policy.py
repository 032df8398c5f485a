"""Where the old policy's velocities come from: the rollout, another call with the old weights, or the policy itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.rounds.noise_floor import Gather, Outputs, noise_floor, report_noise_floor, rounding_limit
from guardlit.surrogate import Objective
from guardlit.types import Transition

OldVelocity = Literal["stored", "recomputed", "auto"]
FLOOR = "noise_floor"
"""Of a micro-batch's outputs, while `auto` measures: what the bound limits, against the stored velocities, (B,)."""


def rows_a_call(images: int, batch: int) -> int:
    """Rows of each call of a rollout of that many images; 0 where the last call has fewer than the others."""
    batch = min(batch, images)
    return 0 if images % batch else batch


class OldPolicy:
    """Decides for each micro-batch where the old policy's velocity comes from.

    In a round's first update the weights have not moved since the rollout: the policy's own velocity is the old one's,
    bit for bit, and costs nothing. `stored` does not use that, so that the ratio shows what rounding does; neither does
    the run's first update under `recomputed`, which measures it.

    `auto` stores velocities where rollout and training calls have equally many rows. In the first update that it sees
    from its start it compares them with the policy's own, before any loss has used them, and decides for good: `stored`
    if rounding leaves the clip alone by the rule of the noise floor, else `recomputed`. A run that is resumed with
    unequal rows stores none in any case: the measurement says nothing about them.

    Args:
        mode: of the configuration.
    """

    def __init__(self, mode: OldVelocity) -> None:
        self.mode = mode
        self.decided: Literal["stored", "recomputed"] | None = None
        """By `auto`; the same on every rank."""
        self.first_update = 0
        """Micro-batches of the round's first update; set when a round begins."""

    def keeps(self, rollout_rows: int, training_rows: int) -> bool:
        """Whether a rollout's velocities are kept, given the rows of a rollout call and of a training call."""
        if self.mode == "auto":
            return self.decided != "recomputed" and rollout_rows == training_rows
        return self.mode == "stored"

    def restores(self, state: Mapping[str, object]) -> bool:
        """Whether the velocities of a checkpoint's round are kept.

        Raises:
            GuardlitError: they are needed, and the checkpoint holds none.
        """
        if self.mode == "stored" and "velocity" not in state:
            raise GuardlitError(
                "model.old_velocity=stored: the checkpoint stands within a round whose velocities were not kept; "
                "resume with recomputed, or from the end of a round"
            )
        return self.mode == "stored" or (self.mode == "auto" and self.decided != "recomputed")

    def velocity(
        self, batch: Transition, own: Tensor, batch_idx: int | None, untouched: bool, ask: Callable[[], Tensor]
    ) -> Tensor:
        """The old policy's velocity, (B, C, H, W) without gradient.

        Args:
            batch: a micro-batch.
            own: the trained policy's velocity.
            batch_idx: of the micro-batch in its round; None where the weights may be any.
            untouched: whether the run has made no update yet.
            ask: calls the network with the old weights.
        """
        source = self._source(batch, self._on_policy(batch_idx), untouched)
        if source == "own":
            return own.detach()
        if source == "stored":
            assert batch.old_velocity is not None
            return batch.old_velocity
        return ask()

    def _on_policy(self, batch_idx: int | None) -> bool:
        return batch_idx is not None and batch_idx < self.first_update

    def _source(self, batch: Transition, on_policy: bool, untouched: bool) -> Literal["stored", "again", "own"]:
        stored = batch.old_velocity is not None
        if self.mode == "stored":
            return "stored"
        if on_policy:
            return "again" if untouched and not self._measures(batch, on_policy) else "own"
        return "stored" if self.decided == "stored" and stored else "again"

    def _measures(self, batch: Transition, on_policy: bool) -> bool:
        return self.mode == "auto" and self.decided is None and on_policy and batch.old_velocity is not None

    def compare(self, objective: Objective, batch: Transition, own: Tensor, batch_idx: int | None) -> dict[str, Tensor]:
        """What `auto` measures of a micro-batch, under `FLOOR`; empty where it measures nothing."""
        if not self._measures(batch, self._on_policy(batch_idx)):
            return {}
        assert batch.old_velocity is not None
        facts = {name: getattr(batch, name) for name in ("noise", "advantage", "gain", "std", "dt")}
        return {FLOOR: objective(own.detach(), batch.old_velocity, **facts, step=batch.step).bounded}

    def before_update(
        self,
        outputs: Sequence[Outputs],
        objective: Objective,
        elements: int,
        steps: int,
        untouched: bool,
        gather: Gather,
    ) -> None:
        """Report the noise floor before the run's first update, and decide where `auto` has measured.

        Collective: every rank must call it.

        Args:
            outputs: of the update's micro-batches.
            objective: whose clip range the noise floor is compared with.
            elements: D, latent elements of a sample.
            steps: denoising steps that can be trained.
            untouched: whether the run has made no update yet.
            gather: rows of every rank, (n, ...) -> (world size, n, ...).
        """
        if all(FLOOR in output for output in outputs):
            self.decide(outputs, rounding_limit(objective, elements), steps, gather, objective.bound.words)
        elif untouched:
            report_noise_floor(outputs, objective.bound.limit(elements), steps, gather, objective.bound.words)

    def decide(
        self, outputs: Sequence[Outputs], limit: float, steps: int, gather: Gather, what: str = "log ratio"
    ) -> None:
        """Decide from what was measured; arguments as `noise_floor`."""
        measured = [{"bounded": output[FLOOR], "step": output["step"]} for output in outputs]
        line, too_high = noise_floor(measured, limit, steps, gather, what)
        self.decided = "recomputed" if too_high else "stored"
        rank_zero_info(f"{line}; old velocities are {self.decided}")

    def state_dict(self) -> dict[str, str]:
        """The decision."""
        return {} if self.decided is None else {"decided": self.decided}

    def load_state_dict(self, state: Mapping[str, Literal["stored", "recomputed"]]) -> None:
        """Restore the decision of a checkpoint; None where it had none."""
        self.decided = state.get("decided")
