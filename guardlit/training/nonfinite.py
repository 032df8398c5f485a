"""What a run does about NaN and infinity: in an update, in a rollout, in the checkpoint to go back to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from guardlit_callbacks.distributed.gather import gather_objects
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from guardlit.checkpoints.shards import read_shards
from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.processes.collectives import raise_on_all
from guardlit.rounds.round import Round

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule

Outputs = Mapping[str, Tensor]

SCALER_PATIENCE = 42
"""Updates in a row that a loss scaler may skip: from 2^28, for 4096 micro-batches an update, it is 6e-5 by then."""


class NonFiniteGuard:
    """Decides before an update, on all processes alike, whether it is made.

    An update whose gradient, loss or log ratio is NaN or infinite never reaches the weights. To `stop` is to raise; to
    `skip` is to drop the gradients, which the optimizer answers by doing nothing: weights, moments, step counts, weight
    decay and the averages of `TrainableEMA` stay as they are, bit for bit. A skipped update counts like any other in
    `global_step`, the learning rate's schedule and the round.

    A gradient that overflows under a loss scaler (16-mixed) while the losses are finite is the scaler's business: it
    skips and lowers its scale, whatever the action, and gives up after `SCALER_PATIENCE` in a row.

    Args:
        action: `stop` or `skip`.
        max_skipped: updates in a row that may be skipped; the next one stops the run.

    Raises:
        GuardlitError: `max_skipped` is below 1.
    """

    def __init__(self, action: Literal["stop", "skip"], max_skipped: int) -> None:
        if max_skipped < 1:
            raise GuardlitError(f"max_skipped={max_skipped} must be at least 1; nonfinite: stop skips no update")
        self.action, self.max_skipped = action, max_skipped
        self.skipped = 0
        """Updates of the run that were not made."""
        self._in_a_row = 0

    def allows(self, module: GRPOModule, norm: Tensor) -> bool:
        """Look at an update that is about to be made; one reduction over processes.

        Args:
            module: with the outputs of the update's micro-batches; loses its gradients where the update is skipped.
            norm: of the update's gradient over all processes, ().

        Returns:
            Whether the update is made.

        Raises:
            NonFiniteError: it is not, and nothing is skipped any more; names round, denoising step and prompt.
        """
        finite = bool(torch.isfinite(norm) & _all_finite(module.outputs))
        if not module.trainer.strategy.reduce_boolean_decision(not finite, all=False):
            self._in_a_row = 0
            return True
        what = f"gradient norm is {float(norm)} at update {module.trainer.global_step}"
        culprits = gather_objects(blame(module.outputs, module.experience.round))
        culprit = next((said for said in culprits if said), None)
        message = f"{what}, round {module.experience.round.index}: " + (
            culprit or "the losses are finite, the backward pass is not"
        )
        scaled = culprit is None and getattr(module.trainer.precision_plugin, "scaler", None) is not None
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        raise_on_all(module.trainer, self._refusal(message, scaled))
        if not scaled:
            rank_zero_warn(f"{message}; the update is skipped ({self.skipped} so far)")
        module.zero_grad(set_to_none=True)
        return False

    def _refusal(self, message: str, scaled: bool) -> NonFiniteError | None:
        untouched = "; the weights were not touched"
        if self.action == "stop" and not scaled:
            return NonFiniteError(message + untouched)
        if self._in_a_row > (SCALER_PATIENCE if scaled else self.max_skipped):
            who = "the loss scaler" if scaled else f"max_skipped={self.max_skipped}"
            return NonFiniteError(f"{message}, {self._in_a_row} times in a row, more than {who} allows{untouched}")
        return None

    def state_dict(self) -> dict[str, int]:
        """How often it skipped; the same on every process."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from there, or from nothing where a checkpoint knows nothing of it."""
        self.skipped, self._in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)


WATCHED = ("loss", "log_ratio", "kl")


def _all_finite(outputs: Sequence[Outputs]) -> Tensor:
    """Whether what decides an update is finite in all of its micro-batches, () bool on the device."""
    return torch.stack([o[key].isfinite().all() for o in outputs for key in WATCHED if key in o]).all()


def blame(outputs: Sequence[Outputs], round: Round) -> str | None:
    """Say which micro-batch of this process is not finite, and where; None if all are.

    Args:
        outputs: of the update's micro-batches.
        round: that they belong to.
    """
    for output in outputs:
        if bool(_all_finite([output])):
            continue
        broken = ~torch.stack([output[key].isfinite() for key in WATCHED[1:] if key in output]).all(dim=0)
        row = int(broken.nonzero()[0]) if bool(broken.any()) else 0
        prompt = round.prompt_of(int(output["sample"][row])).text
        where = f"denoising step {int(output['step'][row])}, prompt '{prompt[:80]}'"
        return f"the loss is {float(output['loss'])} at {where}"
    return None


def finite_weights(path: Path) -> bool:
    """Whether a checkpoint's weights can be read and hold neither NaN nor infinity."""
    try:
        if path.is_dir():
            state: dict[str, Any] = read_shards(path)["state_dict"]
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    except Exception:  # whatever is wrong with the file: it is none to go on from
        return False
    return all(bool(t.isfinite().all()) for t in state.values() if isinstance(t, Tensor) and t.is_floating_point())
