"""What a configuration asks for and cannot get, in plain words, before a run spends anything on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from guardlit.errors import GuardlitError
from guardlit.objective import Objective
from guardlit.rounds.plan import RoundPlan
from guardlit.sde import Coefficients

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule

HOPELESS = 10.0
"""RatioNorm's clip range in nats of summed log-likelihood that no update reaches; published ranges are 0.13 to 0.26."""
ROUNDING = {"bf16-mixed": 3.3e-3, "16-mixed": 4.1e-4}
"""Root mean square of the difference that rounding alone makes between two velocities of unit size: each one's error is
uniform within a unit in the last place, 2^-7 for bfloat16 and 2^-10 for float16 between 1 and 2."""
UNEVEN = 1.5
"""Largest over smallest gradient scale of GRPO-Guard from which it is not flat: 1.25 on the published schedule."""
UNBOUNDED = 3
"""Off-policy updates of a round from which training without a clip is worth a word."""


@dataclass(frozen=True)
class Finding:
    """One thing that a configuration cannot do.

    Attributes:
        rule: its name.
        text: what cannot be, and the remedy.
        fatal: whether a run would be senseless.
    """

    rule: str
    text: str
    fatal: bool = False


def clip_never_acts(objective: Objective, plan: RoundPlan, elements: int | None) -> str | None:
    """Why the clip range that was asked for can never act; None where it can, or none was asked for.

    Args:
        objective: of the run.
        plan: of a round.
        elements: D, latent elements of a sample; None while they are not known.
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
    """Many off-policy updates, and nothing that bounds the ratio."""
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
    """A precision whose rounding is as large as the clip range: what is clipped says nothing of what was learned.

    Two forwards of unchanged weights that differ by rounding of the output alone have log ratios of size
    |g| rounding / sqrt(D), of RatioNorm, or that over s.

    Args:
        objective: of the run.
        coefficients: of the rollout's sampler.
        steps: that some image may train.
        elements: D.
        precision: Lightning's name.
        recomputed: the old policy is asked again at the micro-batch's own shape, and rounds alike; or a measurement
            decides whether that is needed.
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


def no_reference(module: GRPOModule) -> str | None:
    """A KL penalty without weights to measure it from."""
    if module.kl is None or module.policy.has_reference:
        return None
    return (
        "model.kl asks for the distance to the base model, and full fine-tuning keeps no copy of it: "
        "set policy.reference: true, or kl: null"
    )


def copies_cross_the_bus(module: GRPOModule) -> str | None:
    """Whole sets of weights that come from the host's memory in every micro-batch; on a GPU."""
    asked = {"model.old_velocity: recomputed": module.old_velocity == "recomputed", "model.kl": module.kl is not None}
    causes, size = [name for name, so in asked.items() if so], module.policy.host_copy
    if not causes or not size:
        return None
    return (
        f"{' and '.join(causes)} with full fine-tuning: {len(causes) * size / 1e9:.1f} GB of weights come from the "
        "host's memory in every micro-batch; policy.copies_device: null keeps them on the GPU"
    )


def lint(
    module: GRPOModule, plan: RoundPlan, precision: str, loaded: bool = True, on_gpu: bool = False
) -> list[Finding]:
    """All findings of a configuration.

    Args:
        module: of the run.
        plan: of a round.
        precision: Lightning's name of the Trainer's.
        loaded: whether the policy is loaded, or a skeleton; without, rules that need its schedule are silent.
        on_gpu: whether it trains there.
    """
    found = list(_findings(module, plan, precision, loaded))
    if loaded and on_gpu and (text := copies_cross_the_bus(module)) is not None:
        found.append(Finding("copies cross the bus", text))
    return found


def _findings(module: GRPOModule, plan: RoundPlan, precision: str, loaded: bool) -> Iterator[Finding]:
    objective, steps = module.objective, range(*module.rollout.trainable_range)
    elements = math.prod(module.policy.latent_shape) if loaded else None
    rules: list[tuple[str, bool, Callable[[], str | None]]] = [
        ("clip never acts", True, lambda: clip_never_acts(objective, plan, elements)),
        ("no reference", True, lambda: no_reference(module)),
        ("no clip", False, lambda: no_clip(objective, plan)),
    ]
    if elements is not None:
        size, c, again = elements, module.coefficients(), module.old_velocity != "stored"
        rules += [
            ("rounding decides", False, lambda: rounding_decides(objective, c, steps, size, precision, again)),
            ("weight not flat", False, lambda: weight_not_flat(objective, c, steps, type(module.sde).__name__)),
        ]
    for name, fatal, rule in rules:
        if (text := rule()) is not None:
            yield Finding(name, text, fatal)


class Linter(pl.Callback):
    """Says at the start of `fit` what its configuration cannot do; a senseless run ends in a `GuardlitError`."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn in one line each."""
        module: GRPOModule = pl_module  # type: ignore[assignment]
        plan: RoundPlan = trainer.datamodule.plan  # type: ignore[attr-defined]
        for finding in lint(module, plan, str(trainer.precision), on_gpu=module.device.type == "cuda"):
            if finding.fatal:
                raise GuardlitError(finding.text)
            rank_zero_warn(finding.text)
