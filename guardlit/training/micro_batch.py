"""`data.micro_batch: auto`: the largest micro-batch that a device has room for, found by trying."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from guardlit.devices.meter import backward, measured
from guardlit.errors import GuardlitError
from guardlit.processes.collectives import largest
from guardlit.rounds.plan import RoundPlan
from guardlit.types import Conditioning, Transition

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule

SHARE = 0.8
"""Of the free memory of a CPU that a micro-batch may take."""
SPARE = 0.05
"""Of a GPU's memory, kept free for what the trial does not show: fragments, an evaluation's images, other batches."""
LATER = sys.maxsize
"""Index of a micro-batch that belongs to no round's first update: there the old policy may be asked again, too."""


def candidates(plan: RoundPlan, most: int, done: int = 0) -> list[int]:
    """Micro-batches that an update can be cut into, the largest first.

    Args:
        plan: of a round.
        most: the largest that is wanted.
        done: transitions of the round that are done already: one begins there.
    """
    transitions = plan.micro_batches_per_update * plan.micro_batch
    sizes = range(min(most, transitions), 0, -1)
    return [size for size in sizes if transitions % size == 0 and done % (size * plan.world) == 0]


def largest_that_fits(module: GRPOModule, sizes: Sequence[int], conditioning: Conditioning) -> int:
    """The largest of some micro-batches that all processes have room for; to be called by all.

    On a GPU the module's own step is made with each, beside all that training will keep, until memory is enough. A CPU
    has no such limit, only a machine that grows slow or kills: there two small steps are measured by the meter of
    `guardlit plan`, and what they say of larger ones is compared with the memory that is free. Gradients, outputs and
    random numbers are left as they were.

    Args:
        module: at the start of `fit`, its weights on their device.
        sizes: falling.
        conditioning: of some prompts, on the device.

    Raises:
        GuardlitError: not even the smallest fits, or the policy is sharded, so that no process can try by itself.
    """
    if module.device_mesh is not None:
        raise GuardlitError("data.micro_batch=auto cannot be tried under trainer.strategy=fsdp: give a number")
    gpu = module.device.type == "cuda"
    with torch.random.fork_rng(devices=[module.device] if gpu else []):
        mine = _tried(module, sizes, conditioning) if gpu else _estimated(module, sizes, conditioning)
    found = -largest(module.trainer, -mine)
    if not found:
        raise GuardlitError(f"data.micro_batch=auto: there is no memory for a micro-batch of {sizes[-1]}")
    rank_zero_info(f"micro_batch: auto takes {found} of {', '.join(map(str, reversed(sizes)))}")
    return found


def _tried(module: GRPOModule, sizes: Sequence[int], conditioning: Conditioning) -> int:
    total = torch.cuda.get_device_properties(module.device).total_memory
    kept = _kept(module) + int(SPARE * total)
    for size in sizes:
        if _has_room(module, size, conditioning, kept):
            return size
    return 0


def _has_room(module: GRPOModule, size: int, conditioning: Conditioning, kept: int) -> bool:
    try:
        beside = torch.empty(kept, dtype=torch.uint8, device=module.device)
        _step(module, size, conditioning)
    except (torch.OutOfMemoryError, MemoryError):
        beside = None
        return False
    finally:
        _forget(module)
    del beside
    return True


def _kept(module: GRPOModule) -> int:
    """Bytes beside a micro-batch that are not there yet: a round's trajectories, the optimizer's state, an average."""
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    plan = module.trainer.datamodule.plan  # type: ignore[attr-defined]
    tables = 2 if module.old_velocity != "recomputed" else 1
    trajectories = tables * plan.local_images * plan.train_steps * module.elements * 4
    return 3 * trained + (trajectories if module.rollout.trajectories == "device" else 0)


def _estimated(module: GRPOModule, sizes: Sequence[int], conditioning: Conditioning) -> int:
    peaks = []
    for rows in (1, 2):
        with measured() as cost:
            _step(module, rows, conditioning)
        peaks.append(cost.peak)
        _forget(module)
    room = SHARE * free_memory() - _kept(module)
    each = peaks[1] - peaks[0]
    return next((size for size in sizes if peaks[0] + (size - 1) * each <= room), 0)


def free_memory() -> float:
    """Bytes that this process may still take, of the machine and of its control group; infinity where nobody says."""
    found = [math.inf]
    info, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text(encoding="utf-8").splitlines() if ":" in line)
        found += [int(lines[name].split()[0]) * 1024 for name in ("MemAvailable",) if name in lines]
    if (group / "memory.max").exists() and (limit := (group / "memory.max").read_text().strip()).isdecimal():
        found.append(int(limit) - int((group / "memory.current").read_text()))
    return min(found)


def _step(module: GRPOModule, rows: int, conditioning: Conditioning) -> None:
    device = module.device
    index = torch.arange(rows, device=device) % len(next(iter(conditioning.values())))
    table = {name: rows_of[index] for name, rows_of in conditioning.items()}
    batch = Transition.blank(rows, module.policy.latent_shape, table, device)
    with module.trainer.precision_plugin.train_step_context():
        loss: Tensor = module.training_step(batch, LATER)["loss"]
    backward(loss)


def _forget(module: GRPOModule) -> None:
    module.outputs = []
    module.zero_grad(set_to_none=True)
    gc.collect()  # an error's traceback holds the step's tensors
    if module.device.type == "cuda":
        torch.cuda.empty_cache()
