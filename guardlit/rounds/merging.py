"""Whether a rollout draws with the adapter merged into the weights, and what that does to the ratio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Literal, Self

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from guardlit.errors import GuardlitError
from guardlit.policies.base import FlowPolicy
from guardlit.processes.world import World
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.noise_floor import rounding_limit, sizes_by_step
from guardlit.rounds.old_policy import rows_a_call
from guardlit.rounds.round import Round
from guardlit.rounds.setup import RoundSetup
from guardlit.types import Conditioning, Trajectory

Merge = bool | Literal["auto"]
Decision = Literal["never", "always", "measured"]


def check(policy: FlowPolicy, merge: Merge) -> None:
    """Raise `GuardlitError` where `rollout.merge` is true and the policy has no adapter that can be merged."""
    if merge is True and not policy.mergeable:
        raise GuardlitError(
            "rollout.merge: true needs an adapter on layers that are not quantized: set model.policy.lora, leave the "
            "layers as they are, or take rollout.merge: auto"
        )


def decision(merge: Merge, mergeable: bool, kept: bool, equal_rows: bool, batches: int, half: bool) -> Decision:
    """What `rollout.merge` comes to; the same on all ranks and in every round.

    Args:
        merge: as configured.
        mergeable: whether the policy has an adapter that can be merged.
        kept: whether the rollout's velocities are kept.
        equal_rows: whether every rollout batch has a micro-batch's rows.
        batches: that a rank draws in a round.
        half: whether the network computes in half precision.
    """
    if merge is False or not mergeable:
        return "never"
    if merge is True or not kept:
        return "always"
    return "measured" if half and not equal_rows and batches > 1 else "never"


def merges_evaluation(policy: FlowPolicy, merge: Merge) -> bool:
    """Whether validation images are drawn merged: `auto` takes float32 weights, since halves lose small updates."""
    return policy.mergeable and (merge is True or (merge == "auto" and policy.forward_dtype is None))


def evaluating(policy: FlowPolicy, merge: Merge) -> AbstractContextManager[None]:
    """The context in which validation images are drawn; raises what `check` raises."""
    check(policy, merge)
    return policy.merged() if merges_evaluation(policy, merge) else nullcontext()


class Merging:
    """The context of a round's drawing: merges from the start, or after measuring the first batch, or never.

    The measurement takes the first batch's own states and velocities, and one more call: every row at one of its
    trained steps. The decision depends on the round alone, so that a resumed run decides alike.

    Args:
        setup: of the run.
        world: the ranks.
        round: that is drawn.
        batches: samples of each batch of this rank.
    """

    def __init__(self, setup: RoundSetup, world: World, round: Round, batches: Sequence[Sequence[int]]) -> None:
        self._setup, self._world, self._round = setup, world, round
        rows, micro_batch = rows_a_call(sum(map(len, batches)), len(batches[0])), round.plan.micro_batch
        merge, mergeable = setup.rollout.merge, setup.policy.mergeable
        kept = setup.keeps_velocities(rows, micro_batch)
        self._decision = decision(merge, mergeable, kept, rows == micro_batch, len(batches), setup.half_precision)
        self._stack = ExitStack()
        self._can = mergeable and merge is not False
        self._merged = False
        self._error: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """What is known of the merge.

        Logged at the end of a round:

        | key | unit |
        |---|---|
        | `rollout/merged` | 1 where the adapter was merged into the weights, 0 where it could have been |
        | `rollout/merge_error` | log ratio, or KL, that merging makes; where it was measured, in half precision |
        """
        found = {"rollout/merged": float(self._merged)} if self._can else {}
        return found if self._error is None else {**found, "rollout/merge_error": self._error}

    def __enter__(self) -> Self:
        if self._decision == "always":
            self._merge()
            self._report()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _merge(self) -> None:
        self._stack.enter_context(self._setup.policy.merged())
        self._merged = True

    def observe(self, samples: Sequence[int], drawn: Trajectory, conditioning: Callable[[], Conditioning]) -> None:
        """Measure the first batch; to be called after each. Collective: every rank must call it.

        Args:
            samples: the B images.
            drawn: their trajectories.
            conditioning: gives their embeddings, leading dimension B.
        """
        if self._decision != "measured" or self._error is not None:
            return
        limit = rounding_limit(self._setup.objective, self._setup.elements) / 2
        measured = [self._measured(samples, drawn, conditioning())]
        sizes = sizes_by_step(measured, len(self._setup.coefficients), self._world.gather)
        self._error = max(sizes.values())
        if self._error <= limit:
            self._merge()
        what = self._setup.objective.bound.words
        self._report(f": merging makes a {what} of {self._error:.1e}, half of the clip range is {limit:.1e}")

    def _measured(self, samples: Sequence[int], drawn: Trajectory, conditioning: Conditioning) -> dict[str, Tensor]:
        """Log ratios of merged to unmerged velocities, (B,), and their denoising steps."""
        setup, c, rows = self._setup, self._setup.coefficients, torch.arange(len(samples))
        slots = rows % drawn.latents.shape[1]
        step = self._round.trained_steps[list(samples), slots]
        noise = NoiseSource(self._round.seed, self._round.index, setup.policy.latent_shape)
        device = drawn.latents.device
        assert drawn.velocity is not None  # rounds that keep none merge without a measurement
        x, old = (t[rows.to(device), slots.to(device)] for t in (drawn.latents, drawn.velocity))
        with setup.policy.merged(), setup.forward_context():
            sigma = c.sigmas[step].float().to(device)
            velocity = setup.policy.velocity(x, sigma, conditioning, setup.rollout.guidance_scale)
        rows_of = {"gain": c.velocity[step], "std": c.std[step], "dt": c.dt[step], "advantage": torch.ones(len(rows))}
        on_device = {name: values.to(device) for name, values in {**rows_of, "step": step}.items()}
        out = setup.objective(velocity, old, noise.draw(samples, step.tolist()).to(device), **on_device)
        return {"bounded": out.bounded, "step": on_device["step"]}

    def _report(self, why: str = "") -> None:
        """Log a line in the first round, and whenever the decision changes."""
        if self._setup.was_merged is not self._merged:
            how = "merged into" if self._merged else "apart from"
            rank_zero_info(f"round {self._round.number} is drawn with the adapter {how} the weights{why}")
