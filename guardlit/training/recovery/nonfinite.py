"""What a run does about an update that is NaN or infinite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.processes.world import World
from guardlit.rounds.round import Round

Outputs = Mapping[str, Tensor]

SCALER_PATIENCE = 42
"""Consecutive updates that a loss scaler may skip: from 2^28, for 4096 micro-batches an update, it reaches 6e-5."""


class NonFiniteGuard:
    """Decides before each update whether it is made; the same on every rank.

    An update whose gradient, loss or log ratio is NaN or infinite never reaches the weights. `stop` raises; `skip` has
    the caller drop the gradients, without which the optimizer does nothing: weights, moments, step counts, weight decay
    and the averages of `TrainableEMA` stay as they are, bit for bit. A skipped update counts in `global_step`, in the
    learning rate's schedule and in the round.

    A gradient that overflows under a loss scaler (16-mixed) while the losses are finite is left to the scaler: it skips
    and lowers its scale, whatever the action, and gives up after `SCALER_PATIENCE` consecutive updates.

    Args:
        action: `stop` or `skip`.
        max_skipped: consecutive updates that may be skipped; the next one stops the run.

    Raises:
        GuardlitError: `max_skipped` is below 1.
    """

    def __init__(self, action: Literal["stop", "skip"], max_skipped: int) -> None:
        if max_skipped < 1:
            raise GuardlitError(f"max_skipped={max_skipped} must be at least 1; nonfinite: stop skips no update")
        self.action, self.max_skipped = action, max_skipped
        self.skipped = 0
        """Updates of the run that were skipped."""
        self._in_a_row = 0

    def allows(
        self, outputs: Sequence[Outputs], norm: Tensor, update: int, round: Round, world: World, scaled: bool = False
    ) -> bool:
        """Check an update that is about to be made. Collective: every rank must call it.

        Args:
            outputs: of the update's micro-batches.
            norm: of the update's gradient over all ranks, ().
            update: its index in the run; the message counts from 1.
            round: that it belongs to.
            world: the ranks.
            scaled: whether a loss scaler is in use.

        Returns:
            Whether the update is made; otherwise the caller drops its gradients.

        Raises:
            NonFiniteError: it is not made, and no further one may be skipped; names round, denoising step and prompt.
        """
        if not world.any(not bool(torch.isfinite(norm) & _all_finite(outputs))):
            self._in_a_row = 0
            return True
        causes = world.gather_objects(find_cause(outputs, round))
        cause = next((found for found in causes if found), None)
        message = f"gradient norm is {float(norm)} at update {update + 1}, round {round.number}: " + (
            cause or "the losses are finite, the backward pass is not"
        )
        overflow = scaled and cause is None
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        world.raise_on_all(self._refusal(message, overflow))
        if not overflow:
            rank_zero_warn(f"{message}; the update is skipped ({self.skipped} so far)")
        return False

    def _refusal(self, message: str, overflow: bool) -> NonFiniteError | None:
        untouched = "; the weights were not touched"
        if self.action == "stop" and not overflow:
            return NonFiniteError(message + untouched)
        if self._in_a_row > (SCALER_PATIENCE if overflow else self.max_skipped):
            who = "the loss scaler" if overflow else f"max_skipped={self.max_skipped}"
            return NonFiniteError(f"{message}, {self._in_a_row} times in a row, more than {who} allows{untouched}")
        return None

    def state_dict(self) -> dict[str, int]:
        """The counts of skipped updates; the same on every rank."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore the counts; 0 where a checkpoint has none."""
        self.skipped, self._in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)


WATCHED = ("loss", "log_ratio", "kl")
DATA = "data_loss"
"""Of images, not of transitions: it has its own rows."""


def _all_finite(outputs: Sequence[Outputs]) -> Tensor:
    """Whether the `WATCHED` outputs of all micro-batches are finite, () bool on the device."""
    return torch.stack([o[key].isfinite().all() for o in outputs for key in (*WATCHED, DATA) if key in o]).all()


def find_cause(outputs: Sequence[Outputs], round: Round) -> str | None:
    """The first output of this rank that is not finite, with its step and prompt; None if all are finite.

    Args:
        outputs: of the update's micro-batches.
        round: that they belong to.
    """
    for output in outputs:
        if bool(_all_finite([output])):
            continue
        if DATA in output and not bool(output[DATA].isfinite().all()):
            return f"the data loss is {float(output[DATA].mean())}"
        broken = ~torch.stack([output[key].isfinite() for key in WATCHED[1:] if key in output]).all(dim=0)
        row = int(broken.nonzero()[0]) if bool(broken.any()) else 0
        prompt = round.prompt_of(int(output["sample"][row])).text
        where = f"denoising step {int(output['step'][row])}, prompt '{prompt[:80]}'"
        return f"the loss is {float(output['loss'])} at {where}"
    return None
