"""Rules against settings that cannot have their effect, applied before a run spends anything.

The rules stand in `guardlit.training.lint_rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import lightning.pytorch as pl
from guardlit_callbacks import KLFromBase
from lightning.pytorch.utilities import rank_zero_warn

from guardlit.errors import GuardlitError
from guardlit.kl import KL
from guardlit.policies.base import FlowPolicy
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.settings import Rollout
from guardlit.rounds.windows import RandomWindow
from guardlit.sde import SDE, Coefficients
from guardlit.surrogate import Objective
from guardlit.training import lint_rules as rules
from guardlit.training.recovery.partial_round import check_time


@dataclass(frozen=True)
class Finding:
    """A setting without effect, or with a bad one.

    Attributes:
        rule: that found it.
        text: the problem and the remedy.
        fatal: whether the run would be senseless.
    """

    rule: str
    text: str
    fatal: bool = False


def branches_once(rollout: Rollout) -> bool:
    """Whether images draw noise at one step each, the same one in a group."""
    window = rollout.window
    return isinstance(window, RandomWindow) and (window.length, window.per) == (1, "group")


class Linted(Protocol):
    """What the facts are read from."""

    objective: Objective
    policy: FlowPolicy
    sde: SDE
    rollout: Rollout
    kl: KL | None

    @property
    def old_velocity(self) -> str:
        """`stored`, `recomputed` or `auto`."""

    def coefficients(self) -> Coefficients:
        """Of the sampler on the model's schedule."""


@dataclass(frozen=True)
class LintFacts:
    """What the rules look at; frozen values of a run or of a plan.

    Attributes:
        objective: of the run.
        plan: of a round.
        trained: steps that some round trains.
        sampler: its class name.
        precision: Lightning's name of the Trainer's.
        old_velocity: `stored`, `recomputed` or `auto`.
        penalized: whether there is a KL penalty.
        has_reference: whether the policy keeps the base model's weights.
        branches_once: whether images draw noise at one step each, the same one in a group.
        measured: whether the callback `KLFromBase` measures the KL.
        elements: D, latent elements of a sample; None before the policy is loaded, which silences rules that need it.
        coefficients: of the sampler on the model's schedule; None likewise.
        host_copy: bytes of a set of weights that rests in the host's memory; 0 unless the run trains on a GPU.
    """

    objective: Objective
    plan: RoundPlan
    trained: range
    sampler: str
    precision: str
    old_velocity: str
    penalized: bool
    has_reference: bool
    branches_once: bool = False
    measured: bool = False
    elements: int | None = None
    coefficients: Coefficients | None = None
    host_copy: int = 0

    @classmethod
    def of(
        cls,
        module: Linted,
        plan: RoundPlan,
        precision: str,
        on_gpu: bool,
        callbacks: Iterable[object] = (),
        loaded: bool = True,
    ) -> LintFacts:
        """The facts of a module.

        Args:
            module: of a run, or of a plan.
            plan: of a round.
            precision: Lightning's name of the Trainer's.
            on_gpu: whether it trains there.
            callbacks: of the Trainer.
            loaded: whether the policy is loaded, or a skeleton.
        """
        return cls(
            objective=module.objective,
            plan=plan,
            trained=range(*module.rollout.trainable_range),
            sampler=type(module.sde).__name__,
            precision=precision,
            old_velocity=module.old_velocity,
            penalized=module.kl is not None,
            has_reference=module.policy.has_reference,
            branches_once=branches_once(module.rollout),
            measured=any(isinstance(callback, KLFromBase) for callback in callbacks),
            elements=math.prod(module.policy.latent_shape) if loaded else None,
            coefficients=module.coefficients() if loaded else None,
            host_copy=module.policy.host_copy if loaded and on_gpu else 0,
        )


def lint(facts: LintFacts) -> list[Finding]:
    """All findings of a configuration."""
    return list(_findings(facts))


def _findings(facts: LintFacts) -> Iterator[Finding]:
    objective, plan, steps = facts.objective, facts.plan, facts.trained
    checks: list[tuple[str, bool, Callable[[], str | None]]] = [
        ("clip never acts", True, lambda: rules.clip_never_acts(objective, plan, facts.elements)),
        ("no reference", True, lambda: rules.no_reference(facts.penalized, facts.measured, facts.has_reference)),
        ("no clip", False, lambda: rules.no_clip(objective, plan)),
        ("no branching", False, lambda: rules.no_branching(objective, facts.branches_once)),
        ("few to calibrate", False, lambda: rules.few_to_calibrate(objective, plan, len(steps))),
    ]
    if facts.elements is not None and facts.coefficients is not None:
        size, c, again = facts.elements, facts.coefficients, facts.old_velocity != "stored"
        recomputed = facts.old_velocity == "recomputed"
        precision, bytes_ = facts.precision, facts.host_copy
        checks += [
            ("rounding decides", False, lambda: rules.rounding_decides(objective, c, steps, size, precision, again)),
            ("weight not flat", False, lambda: rules.weight_not_flat(objective, c, steps, facts.sampler)),
            ("copies cross the bus", False, lambda: rules.copies_cross_the_bus(recomputed, facts.penalized, bytes_)),
        ]
    for name, fatal, rule in checks:
        if (text := rule()) is not None:
            yield Finding(name, text, fatal)


class Linter(pl.Callback):
    """Warns at the start of `fit` about settings without effect; a senseless run ends in a `GuardlitError`."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report each finding in one line; refuse a fit whose `max_time` is used up."""
        check_time(trainer)
        plan: RoundPlan = trainer.datamodule.plan  # type: ignore[attr-defined]
        on_gpu = pl_module.device.type == "cuda"
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        report(lint(LintFacts.of(pl_module, plan, str(trainer.precision), on_gpu, callbacks)))  # type: ignore[arg-type]


def report(findings: Sequence[Finding]) -> None:
    """Warn about each finding; raises `GuardlitError` at a fatal one."""
    for finding in findings:
        if finding.fatal:
            raise GuardlitError(finding.text)
        rank_zero_warn(finding.text)
