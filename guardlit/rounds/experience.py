"""A collected round: this rank's trajectories, and the advantages of all images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from guardlit.devices.transfer import Place, Trajectories, to_device
from guardlit.rounds.noise import NoiseSource
from guardlit.rounds.round import Round
from guardlit.sde import Coefficients
from guardlit.types import Conditioning, Transition


@dataclass(frozen=True)
class Experience:
    """A collected round, ready to be cut into micro-batches.

    Attributes:
        round: that was drawn.
        trajectories: of n local rows.
        advantage: by image, (N,), or by image and slot, (N, S).
        mask: images that count, (N,) bool.
        metrics: the round's scalars, for the logs.
        conditioning: embeddings of the P prompts, on the device.
        coefficients: of the sampler.
        kl_weight: factor of each image's KL penalty, (N,); None is 1 for all.
        kl_steps: factor of each denoising step's, (T,); None is 1 for all.
    """

    round: Round
    trajectories: Trajectories
    advantage: Tensor
    mask: Tensor
    metrics: Mapping[str, float]
    conditioning: Conditioning
    coefficients: Coefficients
    kl_weight: Tensor | None = None
    kl_steps: Tensor | None = None

    @property
    def latents(self) -> Tensor:
        """x_t before each of an image's trained steps, (n, S, C, H, W) float32, n local rows."""
        return self.trajectories.latents

    @property
    def velocity(self) -> Tensor | None:
        """The sampling policy's velocity there, (n, S, C, H, W) float32; None where it is not kept."""
        return self.trajectories.velocity

    @cached_property
    def _tables(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What a transition takes by denoising step, (T,), and by image, (N,) or (N, S), on the device."""
        c, device = self.coefficients, self.trajectories.device
        kl_steps = torch.ones(len(c)) if self.kl_steps is None else self.kl_steps
        kl_weight = torch.ones(len(self.mask)) if self.kl_weight is None else self.kl_weight
        by_step = {"sigma": c.sigmas.float(), "gain": c.velocity, "std": c.std, "dt": c.dt, "kl_steps": kl_steps}
        by_image = {
            "advantage": self.advantage,
            "sample_weight": self.round.sample_weights(self.mask),
            "step": self.round.trained_steps,
            "kl_weight": kl_weight,
        }
        return tuple({k: to_device(v, device) for k, v in table.items()} for table in (by_step, by_image))  # type: ignore[return-value]

    @cached_property
    def _noise(self) -> NoiseSource:
        return NoiseSource(self.round.seed, self.round.index, self.latents.shape[2:])

    def steps_of(self, rows: Sequence[int], slots: Sequence[int]) -> list[int]:
        """The denoising step at each row's slot."""
        table = self.round.trained_steps
        return [int(table[self.round.samples[row], slot]) for row, slot in zip(rows, slots, strict=True)]

    def places(self) -> dict[int, list[tuple[int, int]]]:
        """Every (local row, slot) of each trained denoising step, the steps rising."""
        rows, slots = self.latents.shape[:2]
        found: dict[int, list[tuple[int, int]]] = {}
        for row in range(rows):
            for slot, step in enumerate(self.steps_of([row] * slots, range(slots))):
                found.setdefault(step, []).append((row, slot))
        return dict(sorted(found.items()))

    def take(self, rows: list[int], slots: list[int]) -> Transition:
        """The micro-batch of B local rows, each at one of its S slots, on the device."""
        samples, device = [self.round.samples[row] for row in rows], self.trajectories.device
        noise = self._noise.draw(samples, self.steps_of(rows, slots), pinned=device.type == "cuda")
        index = torch.tensor([rows, slots, samples])
        here = to_device(index, device)
        latents, velocity = self.trajectories.take(index, here)
        slot, sample = here[1], here[2]
        prompt = sample // self.round.plan.images_per_prompt
        by_step, by_image = self._tables
        taken = {n: table[sample, slot] if table.ndim == 2 else table[sample] for n, table in by_image.items()}
        of_step = {name: table[taken["step"]] for name, table in by_step.items()}
        taken["kl_weight"] = taken["kl_weight"] * of_step.pop("kl_steps")
        return Transition(
            latents=latents,
            noise=to_device(noise, device),
            old_velocity=velocity,
            sample=sample,
            conditioning={name: table[prompt] for name, table in self.conditioning.items()},
            **of_step,
            **taken,
        )

    def state(self, collect: Callable[[Tensor], list[Tensor]]) -> dict[str, Any]:
        """The round for a checkpoint, by image, so that it is resumed at any world size. Collective.

        Args:
            collect: gathers CPU tensors of all ranks on the rank that writes, and gives the others none.
        """
        kept = {"latents": self.latents, "velocity": self.velocity}
        return {
            **{name: self._collected(table, collect) for name, table in kept.items() if table is not None},
            **({} if self.kl_weight is None else {"kl_weight": self.kl_weight}),
            "advantage": self.advantage,
            "mask": self.mask,
            "metrics": dict(self.metrics),
        }

    def _collected(self, rows: Tensor, collect: Callable[[Tensor], list[Tensor]]) -> Tensor:
        parts = collect(rows.cpu())
        return self.round.by_image(torch.stack(parts)) if parts else torch.empty(0)

    @classmethod
    def restore(
        cls,
        state: Mapping[str, Any],
        round: Round,
        conditioning: Conditioning,
        coefficients: Coefficients,
        place: Place = "device",
        velocities: bool = True,
        kl_steps: Tensor | None = None,
    ) -> Experience:
        """Restore a round from a checkpoint; its trajectories are used on the conditioning's device.

        Args:
            state: of the checkpoint.
            round: that the checkpoint was written in.
            conditioning: embeddings of the P prompts.
            coefficients: of the sampler.
            place: where trajectories are stored.
            velocities: whether the checkpoint's velocities, if it has some, are kept.
            kl_steps: factor of each denoising step's KL penalty, (T,); None is 1 for all.
        """
        device = next(iter(conditioning.values())).device
        velocity = state["velocity"][round.samples] if velocities and "velocity" in state else None
        return cls(
            round=round,
            trajectories=Trajectories(state["latents"][round.samples], velocity, device, place),
            advantage=state["advantage"],
            mask=state["mask"],
            metrics=state["metrics"],
            conditioning=conditioning,
            coefficients=coefficients,
            kl_weight=state.get("kl_weight"),
            kl_steps=kl_steps,
        )
