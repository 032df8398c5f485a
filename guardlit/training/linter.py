"""Rules against settings that cannot have their effect, applied before a run spends anything.

Each rule returns the problem and the remedy in one line, or None.
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
from guardlit.sde import SDE, Coefficients
from guardlit.surrogate import Objective
from guardlit.training.recovery.partial_round import check_time

HOPELESS = 10.0
"""RatioNorm's clip range in nats of summed log-likelihood that no update reaches; published ranges are 0.13 to 0.26."""
ROUNDING = {"bf16-mixed": 3.3e-3, "16-mixed": 4.1e-4}
"""Root mean square of the difference that rounding alone makes between two velocities of unit size: each one's error is
uniform within a unit in the last place, 2^-7 for bfloat16 and 2^-10 for float16 between 1 and 2."""
UNEVEN = 1.5
"""Largest over smallest gradient scale of GRPO-Guard from which it is not flat: 1.25 on the published schedule."""
UNBOUNDED = 3
"""Off-policy updates of a round from which training without a clip is worth a warning."""


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


def clip_never_acts(objective: Objective, plan: RoundPlan, elements: int | None) -> str | None:
    """A clip range that can never act.

    Args:
        objective: of the run.
        plan: of a round.
        elements: D, latent elements of a sample; None before the policy is loaded.
    """
    if objective.clip_range is None and not objective.auto:
        return None
    if plan.off_policy_updates == 0:
        return (
            "the clip can never act: data.updates_per_round=1 makes every update on-policy, where the ratio is 1; "
            "take at least 2, or objective.clip_range: null to train without a clip"
        )
    if objective.clip_range is None or objective.form != "ratio_norm" or elements is None:
        return None
    nats = objective.log_bounds(elements)[1] * elements
    if nats <= HOPELESS:
        return None
    return (
        f"the clip can never act: clip_range {objective.clip_range[1]:g} on {elements} latent elements is "
        f"{nats:.3g} nats of log-likelihood, and a baseline's range does not carry over: "
        "RatioNorm's published ones are 0.13 to 0.26"
    )


def no_clip(objective: Objective, plan: RoundPlan) -> str | None:
    """Many off-policy updates without a bound of the ratio."""
    if objective.clip_range is not None or objective.auto or plan.off_policy_updates < UNBOUNDED:
        return None
    return (
        f"objective.clip_range: null leaves {plan.off_policy_updates} of {plan.updates_per_round} updates of a round "
        "off-policy and unbounded; set a range or `auto`, or lower data.updates_per_round"
    )


def rounding_decides(
    objective: Objective,
    coefficients: Coefficients,
    steps: Sequence[int],
    elements: int,
    precision: str,
    recomputed: bool,
) -> str | None:
    """A precision whose rounding is as large as the clip range, so that rounding decides what is clipped.

    Two forwards of unchanged weights that differ by rounding of the output alone have log ratios of size
    |g| rounding / sqrt(D), of RatioNorm, or that over s.

    Args:
        objective: of the run.
        coefficients: of the rollout's sampler.
        steps: that some image may train.
        elements: D.
        precision: Lightning's name.
        recomputed: whether the old policy's velocities are recomputed at the micro-batch's own shape, where they round
            alike, or a measurement decides whether to do so.
    """
    if objective.clip_range is None or recomputed or precision not in ROUNDING:
        return None
    trained = list(steps)
    g, s = coefficients.velocity[trained].abs(), coefficients.std[trained]
    size = ROUNDING[precision] / elements**0.5 * (g if objective.form == "ratio_norm" else g / s)
    low, high = objective.log_bounds(elements)
    limit = min(-low, high)
    over = [trained[i] for i in (size > limit / 2).nonzero().flatten().tolist()]
    if not over:
        return None
    return (
        f"trainer.precision={precision} rounds so coarsely that log ratios of up to {float(size.max()):.1e} come of "
        f"nothing at steps {over}, more than half of the clip range {limit:.1e}: rounding will decide what is clipped; "
        "take 32-true, or 16-mixed before bf16-mixed, or model.old_velocity: recomputed"
    )


def weight_not_flat(objective: Objective, coefficients: Coefficients, steps: Sequence[int], sampler: str) -> str | None:
    """RatioNorm weighted by 1 / dt under a sampler whose gain is not nearly proportional to dt."""
    if objective.form != "ratio_norm" or objective.weight != "inverse_dt":
        return None
    c, trained = coefficients, list(steps)
    scale = objective.gradient_scale(c.velocity[trained], c.std[trained], c.dt[trained])
    spread = float(scale.max() / scale.min())
    if spread <= UNEVEN:
        return None
    return (
        f"under {sampler} the weight 1 / dt leaves gradients {spread:.1f} times as large at one trained step as at "
        "another; class_path: guardlit.objective.Objective with weight: inverse_gain makes them equal"
    )


def no_reference(penalized: bool, measured: bool, has_reference: bool) -> str | None:
    """A KL, as a penalty or measured by `KLFromBase`, without weights to measure it from."""
    if has_reference or not (penalized or measured):
        return None
    asks, without = ("model.kl", "kl: null") if penalized else ("KLFromBase", "remove the callback")
    return (
        f"{asks} asks for the distance to the base model, and full fine-tuning keeps no copy of it: "
        f"set policy.reference: true, or {without}"
    )


def copies_cross_the_bus(recomputed: bool, penalized: bool, host_copy: int) -> str | None:
    """Full sets of weights that every micro-batch copies from the host's memory to the GPU."""
    settings = {"model.old_velocity: recomputed": recomputed, "model.kl": penalized}
    causes = [name for name, applies in settings.items() if applies]
    if not causes or not host_copy:
        return None
    return (
        f"{' and '.join(causes)} with full fine-tuning: {len(causes) * host_copy / 1e9:.1f} GB of weights come from "
        "the host's memory in every micro-batch; policy.copies_device: null keeps them on the GPU"
    )


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
    rules: list[tuple[str, bool, Callable[[], str | None]]] = [
        ("clip never acts", True, lambda: clip_never_acts(objective, plan, facts.elements)),
        ("no reference", True, lambda: no_reference(facts.penalized, facts.measured, facts.has_reference)),
        ("no clip", False, lambda: no_clip(objective, plan)),
    ]
    if facts.elements is not None and facts.coefficients is not None:
        size, c, again = facts.elements, facts.coefficients, facts.old_velocity != "stored"
        recomputed = facts.old_velocity == "recomputed"
        rules += [
            ("rounding decides", False, lambda: rounding_decides(objective, c, steps, size, facts.precision, again)),
            ("weight not flat", False, lambda: weight_not_flat(objective, c, steps, facts.sampler)),
            ("copies cross the bus", False, lambda: copies_cross_the_bus(recomputed, facts.penalized, facts.host_copy)),
        ]
    for name, fatal, rule in rules:
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
