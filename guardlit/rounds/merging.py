"""Whether a rollout draws with the adapter merged into the weights, and what that does to the ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.old_policy import rows_a_call
from guardlit.rounds.round import Round
from guardlit.sde import Coefficients
from guardlit.training.checks import rounding_bounds, sizes_by_step
from guardlit.types import Conditioning, Trajectory

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule

Decision = Literal["never", "always", "measured"]


def check(module: GRPOModule) -> None:
    """Raise `GuardlitError` where `rollout.merge` is true, and there is no adapter or one that cannot be merged."""
    if module.rollout.merge is True and not module.policy.mergeable:
        raise GuardlitError(
            "rollout.merge: true needs an adapter on layers that are not quantized: set model.policy.lora, leave the "
            "layers as they are, or take rollout.merge: auto"
        )


def decision(module: GRPOModule, batch: int, micro_batch: int, batches: int, half: bool) -> Decision:
    """What `rollout.merge` comes to; the same on all processes and in every round.

    Args:
        module: of the run.
        batch: images drawn at once; 0 where that is not always as many.
        micro_batch: transitions trained at once.
        batches: that a process draws in a round.
        half: whether the network computes in half precision.
    """
    asked = module.rollout.merge
    if asked is False or not module.policy.mergeable:
        return "never"
    if asked is True or not module.old.keeps(batch, micro_batch):
        return "always"
    return "measured" if half and batch != micro_batch and batches > 1 else "never"


def merges_evaluation(module: GRPOModule) -> bool:
    """Whether validation images are drawn merged: `auto` takes float32 weights, since halves lose small updates."""
    asked, policy = module.rollout.merge, module.policy
    return policy.mergeable and (asked is True or (asked == "auto" and policy.forward_dtype is None))


def evaluating(module: GRPOModule) -> AbstractContextManager[None]:
    """The context in which validation images are drawn; raises what `check` does."""
    check(module)
    return module.policy.merged() if merges_evaluation(module) else nullcontext()


class Merging:
    """The context of one round's drawing: merges at once, or once it has measured the first batch, or never.

    The first batch's own states and velocities are what is measured with, by one more call: every row at one of its
    trained steps. What is decided depends on the round alone, so that a resumed run decides alike.

    Args:
        module: of the run.
        round: that is drawn.
        coefficients: of its sampler.
        batches: images of each batch of this process.
    """

    def __init__(
        self, module: GRPOModule, round: Round, coefficients: Coefficients, batches: Sequence[Sequence[int]]
    ) -> None:
        self._module, self._round, self._coefficients = module, round, coefficients
        half = module.policy.forward_dtype is not None or "mixed" in str(module.trainer.precision)
        rows = rows_a_call(sum(map(len, batches)), len(batches[0]))
        self._decision = decision(module, rows, round.plan.micro_batch, len(batches), half)
        self._stack = ExitStack()
        self._can = module.policy.mergeable and module.rollout.merge is not False
        self._merged = False
        self._error: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """`rollout/merged`: 1 or 0, of a run that could merge; `rollout/merge_error`: log ratio that it makes."""
        found = {"rollout/merged": float(self._merged)} if self._can else {}
        return found if self._error is None else {**found, "rollout/merge_error": self._error}

    def __enter__(self) -> Self:
        if self._decision == "always":
            self._merge()
            self._tell()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _merge(self) -> None:
        self._stack.enter_context(self._module.policy.merged())
        self._merged = True

    def drew(self, samples: Sequence[int], drawn: Trajectory, conditioning: Callable[[], Conditioning]) -> None:
        """Told of every batch; the first one is measured.

        Args:
            samples: the B images.
            drawn: their trajectories.
            conditioning: gives their embeddings, leading dimension B.
        """
        if self._decision != "measured" or self._error is not None:
            return
        bounds = rounding_bounds(self._module.objective, self._module.elements)
        sizes = sizes_by_step([self._measured(samples, drawn, conditioning())], len(self._coefficients), self._gather)
        self._error, limit = max(sizes.values()), min(-bounds[0], bounds[1]) / 2
        if self._error <= limit:
            self._merge()
        self._tell(f": merging makes log ratios of {self._error:.1e}, half of the clip range is {limit:.1e}")

    def _measured(self, samples: Sequence[int], drawn: Trajectory, conditioning: Conditioning) -> dict[str, Tensor]:
        """Log ratios of merged to unmerged velocities, (B,), and their denoising steps."""
        module, c, rows = self._module, self._coefficients, torch.arange(len(samples))
        slots = rows % drawn.latents.shape[1]
        step = self._round.trained_steps[list(samples), slots]
        noise = NoiseSource(self._round.seed, self._round.index, module.policy.latent_shape)
        device = drawn.latents.device
        assert drawn.velocity is not None  # rounds that keep none merge without a measurement
        x, old = (t[rows.to(device), slots.to(device)] for t in (drawn.latents, drawn.velocity))
        with module.policy.merged(), module.trainer.precision_plugin.forward_context():
            sigma = c.sigmas[step].float().to(device)
            velocity = module.policy.velocity(x, sigma, conditioning, module.rollout.guidance_scale)
        rows_of = {"gain": c.velocity[step], "std": c.std[step], "dt": c.dt[step], "advantage": torch.ones(len(rows))}
        on_device = {name: values.to(device) for name, values in rows_of.items()}
        out = module.objective(velocity, old, noise.draw(samples, step.tolist()).to(device), **on_device)
        return {"log_ratio": out.log_ratio, "step": step.to(device)}

    def _gather(self, rows: Tensor) -> Tensor:
        return self._module.gather(rows)

    def _tell(self, why: str = "") -> None:
        """One line in the first round, and whenever it becomes otherwise."""
        if self._module.drew_merged is not self._merged:
            self._module.drew_merged = self._merged
            how = "with the adapter merged into the weights" if self._merged else "with the adapter beside the weights"
            rank_zero_info(f"round {self._round.index} is drawn {how}{why}")
