"""The linter's rules: each returns the problem and the remedy in one line, or None."""

from __future__ import annotations

from collections.abc import Sequence

from guardlit.ratios import on_policy_scale
from guardlit.rounds.plan import RoundPlan
from guardlit.sde import Coefficients
from guardlit.surrogate import Objective

HOPELESS = 10.0
"""A bound in nats that no update reaches: RatioNorm's clip range in summed log-likelihood, of which published ones are
0.13 to 0.26, or the KL of a whole latent, 0.66 for Flow-DPPO's 1e-5 at 512 px."""
FEW = 20
"""Transitions of a step in an update below which a fifth of them is no statistic."""
ROUNDING = {"bf16-mixed": 3.3e-3, "16-mixed": 4.1e-4}
"""Root mean square of the difference that rounding alone makes between two velocities of unit size: each one's error is
uniform within a unit in the last place, 2^-7 for bfloat16 and 2^-10 for float16 between 1 and 2."""
UNEVEN = 1.5
"""Largest over smallest gradient scale of GRPO-Guard from which it is not flat: 1.25 on the published schedule."""
UNBOUNDED = 3
"""Off-policy updates of a round from which training without a clip is worth a warning."""


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
    kl = objective.bound.kind == "kl"
    if objective.clip_range is None or elements is None or not (kl or objective.form == "ratio_norm"):
        return None
    nats = (objective.bound.limit(elements) if kl else objective.log_bounds(elements)[1]) * elements
    if nats <= HOPELESS:
        return None
    if kl:
        return (
            f"the bound can never act: a KL limit of {objective.clip_range[1]:g} on {elements} latent elements is "
            f"{nats:.3g} nats in one step, which no update reaches: Flow-DPPO's 1e-5 is 0.66 at 512 px"
        )
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

    Two forwards of unchanged weights that differ by rounding of the output alone have log ratios of size rounding /
    sqrt(D) times the form's own scale, and a KL of (g rounding / s)^2 / 2.

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
    g, s = coefficients.velocity[trained], coefficients.std[trained]
    if objective.bound.kind == "kl":
        size = (ROUNDING[precision] * g / s).square() / 2
    else:
        size = ROUNDING[precision] / elements**0.5 * on_policy_scale(objective.form, g, s)
    limit = objective.bound.limit(elements)
    over = [trained[i] for i in (size > limit / 2).nonzero().flatten().tolist()]
    if not over:
        return None
    return (
        f"trainer.precision={precision} rounds so coarsely that a {objective.bound.words} of up to "
        f"{float(size.max()):.1e} comes of nothing at steps {over}, more than half of the clip range {limit:.1e}: "
        "rounding will decide what is clipped; take 32-true, or 16-mixed before bf16-mixed, or model.old_velocity: "
        "recomputed"
    )


def no_branching(objective: Objective, branches_once: bool) -> str | None:
    """An objective for images that branch at one step, and a rollout whose images do not."""
    if not objective.images_branch_once or branches_once:
        return None
    return (
        f"{type(objective).__name__} is made for images that draw noise at one step each, the same one in a group: set "
        "rollout.window to class_path: RandomWindow with length: 1 (per: group is its default)"
    )


def few_to_calibrate(objective: Objective, plan: RoundPlan, trained: int) -> str | None:
    """A clip range per step that would be calibrated on a handful of transitions.

    Args:
        objective: of the run.
        plan: of a round.
        trained: steps that some image may train.
    """
    if not objective.bound.per_step:
        return None
    each = plan.images // plan.updates_per_epoch * plan.train_steps // trained
    if each >= FEW:
        return None
    return (
        f"clip_range: auto_per_step has {each} transitions of each denoising step in an update to calibrate on, and a "
        f"fraction of fewer than {FEW} is no statistic: take auto, or more images for an update"
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
