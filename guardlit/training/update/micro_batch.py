"""`data.micro_batch: auto`: the largest micro-batch that fits into a device's memory, found by trial."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from guardlit.devices.meter import backward, measured
from guardlit.errors import GuardlitError
from guardlit.policies.base import FlowPolicy
from guardlit.processes.world import World
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.settings import Rollout
from guardlit.types import Conditioning, Transition

CPU_FRACTION = 0.8
"""Of a CPU's free memory that a micro-batch may take."""
SPARE = 0.05
"""Fraction of a GPU's memory kept free for what the trial does not show: fragments, images of an evaluation."""
Context = Callable[[], AbstractContextManager[None]]
Step = Callable[[int], None]
LATER = sys.maxsize
"""Index of a micro-batch after any round's first update: there the old policy may be called too."""


class Tried(Protocol):
    """What the trial uses of the module."""

    policy: FlowPolicy
    rollout: Rollout
    outputs: list[dict[str, Tensor]]

    @property
    def old_velocity(self) -> str:
        """`stored`, `recomputed` or `auto`."""

    @property
    def device(self) -> torch.device:
        """Where it trains."""

    @property
    def world(self) -> World:
        """The ranks."""

    @property
    def plan(self) -> RoundPlan:
        """The arithmetic of a round."""

    @property
    def elements(self) -> int:
        """D, latent elements of a sample."""

    @property
    def device_mesh(self) -> Any:
        """Of sharded weights; None otherwise."""

    def training_step(self, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
        """Loss of a micro-batch."""

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        """Of which some train."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients."""


def largest_that_fits(module: Tried, context: Context, sizes: Sequence[int], conditioning: Conditioning) -> int:
    """The largest micro-batch that fits on every rank. Collective: every rank must call it.

    On a GPU it makes the module's own step at each size, next to all that training will keep, until one fits. A CPU has
    no such limit, but it slows down or kills the process: there the meter of `guardlit plan` measures two small steps,
    and their extrapolation is compared with the free memory. Gradients, outputs and random numbers stay as they were.

    Args:
        module: at the start of `fit`, its weights on their device.
        context: the precision's context of a training step.
        sizes: falling.
        conditioning: of some prompts, on the device.

    Raises:
        GuardlitError: not even the smallest fits, or the policy is sharded, so that no rank can try alone.
    """
    if module.device_mesh is not None:
        raise GuardlitError("data.micro_batch=auto cannot be tried under trainer.strategy=fsdp: give a number")
    gpu = module.device.type == "cuda"
    with torch.random.fork_rng(devices=[module.device] if gpu else []):
        try_sizes = _tried if gpu else _estimated
        mine = try_sizes(module, partial(step, module, context, conditioning), sizes)
    found = -module.world.largest(-mine)
    if not found:
        raise GuardlitError(f"data.micro_batch=auto: there is no memory for a micro-batch of {sizes[-1]}")
    rank_zero_info(f"micro_batch: auto takes {found} of {', '.join(map(str, reversed(sizes)))}")
    return found


def _tried(module: Tried, make_step: Step, sizes: Sequence[int]) -> int:
    total = torch.cuda.get_device_properties(module.device).total_memory
    return first_with_room(module, make_step, sizes, kept_bytes(module) + int(SPARE * total))


def first_with_room(module: Tried, make_step: Step, sizes: Sequence[int], kept: int) -> int:
    """The first size whose step fits next to `kept` bytes; 0 where none does."""
    return next((size for size in sizes if _has_room(module, make_step, size, kept)), 0)


def _has_room(module: Tried, make_step: Step, size: int, kept: int) -> bool:
    try:
        reserved = torch.empty(kept, dtype=torch.uint8, device=module.device)
        make_step(size)
    except (torch.OutOfMemoryError, MemoryError):
        reserved = None
        return False
    finally:
        discard(module)
    del reserved
    return True


def kept_bytes(module: Tried) -> int:
    """Bytes that training keeps and that are not allocated yet: trajectories, optimizer state, an average."""
    trained: int = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    tables = 2 if module.old_velocity != "recomputed" else 1
    trajectories = tables * module.plan.local_images * module.plan.train_steps * module.elements * 4
    return 3 * trained + (trajectories if module.rollout.trajectories == "device" else 0)


def _estimated(module: Tried, make_step: Step, sizes: Sequence[int]) -> int:
    peaks = []
    for rows in (1, 2):
        with measured() as cost:
            make_step(rows)
        peaks.append(cost.peak)
        discard(module)
    room = CPU_FRACTION * free_memory() - kept_bytes(module)
    each = peaks[1] - peaks[0]
    return next((size for size in sizes if peaks[0] + (size - 1) * each <= room), 0)


def free_memory() -> float:
    """Bytes that this process may still allocate, by the machine and its control group; infinity where unknown."""
    found = [math.inf]
    info, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines() if ":" in line)
        found += [int(lines[name].split()[0]) * 1024 for name in ("MemAvailable",) if name in lines]
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()).isdecimal():
        found.append(int(limit) - int((group / "memory.current").read_text()))
    return min(found)


def step(module: Tried, context: Context, conditioning: Conditioning, rows: int) -> None:
    """Make a forward and backward pass of that many rows without content."""
    device = module.device
    index = torch.arange(rows, device=device) % len(next(iter(conditioning.values())))
    table = {name: rows_of[index] for name, rows_of in conditioning.items()}
    batch = Transition.blank(rows, module.policy.latent_shape, table, device)
    with context():
        loss = module.training_step(batch, LATER)["loss"]
    backward(loss)


def discard(module: Tried) -> None:
    """Drop the gradients and outputs of a step."""
    module.outputs = []
    module.zero_grad(set_to_none=True)
    gc.collect()  # an error's traceback holds the step's tensors
    if module.device.type == "cuda":
        torch.cuda.empty_cache()
