"""Settings of sampling: of training images and of validation images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from guardlit.errors import GuardlitError
from guardlit.rounds.windows import Window
from guardlit.sde import MOST_STEPS


@dataclass(frozen=True)
class Denoising:
    """What training and validation images have in common.

    Attributes:
        num_inference_steps: T, sampling steps.
        guidance_scale: of classifier-free guidance; 1 for none.
    """

    num_inference_steps: int = 40
    guidance_scale: float = 4.5
    base_steps: ClassVar[int] = 0
    """Not a setting here; with it a script's rollout settings serve as those of its evaluation."""

    @property
    def policy_steps(self) -> int:
        """T - k, the steps that the policy takes."""
        return self.num_inference_steps - self.base_steps

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise GuardlitError(f"num_inference_steps={self.num_inference_steps} must be at least 1")
        if self.num_inference_steps > MOST_STEPS:
            raise GuardlitError(
                f"num_inference_steps={self.num_inference_steps} must be at most {MOST_STEPS}, the timesteps that "
                "models are trained on"
            )
        if not 1 <= self.guidance_scale < math.inf:
            raise GuardlitError(f"guidance_scale={self.guidance_scale} must be at least 1, which means no guidance")


@dataclass(frozen=True)
class Sampling(Denoising):
    """How validation images are drawn.

    Attributes:
        base_steps: k, the last steps that the base model takes in place of the policy, 0 to T. Training images are
            drawn by the policy alone.
    """

    base_steps: int = 0  # type: ignore[misc]  # of the class above, where it is no setting

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.base_steps <= self.num_inference_steps:
            raise GuardlitError(
                f"base_steps={self.base_steps} must be at least 0 and at most num_inference_steps="
                f"{self.num_inference_steps}"
            )

    def __repr__(self) -> str:
        """A fingerprint's entry: without `base_steps` where they are 0, as checkpoints had it before the setting."""
        last = f", base_steps={self.base_steps}" if self.base_steps else ""
        return f"Sampling(num_inference_steps={self.num_inference_steps}, guidance_scale={self.guidance_scale}{last})"


@dataclass(frozen=True)
class Rollout(Denoising):
    """How training images are drawn, and which of their steps are trained.

    Attributes:
        timestep_fraction: fraction of the steps, from the noisy end, that can be trained: 0.99 leaves the last one out.
        window: which of those are trained of an image; null for all. Outside a window of the kinds `RandomWindow` and
            `SlidingWindow`, images follow the ODE.
        initial_noise: whether each `sample` has its own initial noise, or the images of a `group` share it.
        trajectories: where a round's latents, and velocities if they are kept, are stored until they are trained on: on
            the `device`, or on the `host`, for a GPU in pinned memory, from which each micro-batch's rows are copied.
        merge: draw with a LoRA added to the weights, which costs fewer operations and rounds differently; true, false
            or `auto`. `auto` merges where `model.old_velocity` keeps no velocities of the rollout: `recomputed`, and
            `auto` once it recomputes, which it always does under `merge: true`. Where velocities are kept, merging
            would make the ratio of a round's first update differ from 1. So only rounds whose rollout and training
            batches differ, in half precision, may merge, since their first ratio is not exactly 1 anyway: one call a
            round measures the log ratio that merging makes, which may be at most half of the clip range. Validation
            images are drawn merged where the weights are float32. `rollout/merged` and `rollout/merge_error` are
            logged.
    """

    num_inference_steps: int = 10
    timestep_fraction: float = 0.99
    window: Window | None = None
    initial_noise: Literal["sample", "group"] = "sample"
    trajectories: Literal["device", "host"] = field(default="device", repr=False)  # not part of the fingerprint
    merge: bool | Literal["auto"] = field(default="auto", repr=False)  # a resumed run may change it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.merge not in (True, False, "auto"):
            raise GuardlitError(f"rollout.merge={self.merge} must be true, false or auto")
        if not 0 < self.timestep_fraction <= 1 or self.available_steps < 1:
            trained = self.available_steps if math.isfinite(self.timestep_fraction) else "none"
            raise GuardlitError(
                f"timestep_fraction={self.timestep_fraction} of {self.num_inference_steps} steps trains {trained}; it "
                "must lie in (0, 1] and leave at least one"
            )
        try:
            steps = self.train_steps
        except ValueError as error:
            raise GuardlitError(f"rollout.window: {error}") from error
        assert steps >= 1

    @property
    def available_steps(self) -> int:
        """Number of steps that can be trained."""
        return self.available_of(self.num_inference_steps)

    def available_of(self, num_steps: int) -> int:
        """Number of steps that could be trained in a schedule of `num_steps`."""
        return int(num_steps * self.timestep_fraction + 1e-9)  # 100 x 0.29 is 28.999...

    @property
    def trainable_range(self) -> tuple[int, int]:
        """Half-open range of steps that any round may train."""
        return (0, self.available_steps) if self.window is None else self.window.trainable_range(self.available_steps)

    @property
    def train_steps(self) -> int:
        """S, trained steps of each image."""
        return self.available_steps if self.window is None else self.window.size(self.available_steps)
