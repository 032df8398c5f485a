"""What a checkpoint holds, and whether it belongs to this run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from guardlit_callbacks.distributed.gather import gather_objects
from guardlit_callbacks.distributed.sharded import is_sharded, on_first, reshard, shard_like
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from guardlit.errors import GuardlitError
from guardlit.processes.collectives import gather_on_first
from guardlit.processes.lightning_internals import close_epoch, move_within_epoch

if TYPE_CHECKING:
    from guardlit.training.module import GRPOModule

KEY = "guardlit"
VALIDATION = ("data.val", "evaluation")
"""Of a fingerprint, what may change: training does not depend on it."""


def complete(checkpoint: dict[str, Any], module: GRPOModule) -> None:
    """Make Lightning's checkpoint one that the run can go on from; to be called by all processes."""
    keep_trainable(checkpoint, module)
    name_optimizer_states(checkpoint, module, module.trainer.optimizers)
    finished = module.trainer.datamodule.finished_rounds  # type: ignore[attr-defined]
    if finished is not None:
        close_epoch(checkpoint, finished)
    part: dict[str, Any] = {"fingerprint": fingerprint(module), "nonfinite": module.nonfinite.state_dict()}
    part["old_velocity"] = module.old.state_dict()
    if finished is None:
        part["old"] = module.policy.old_state()
    checkpoint[KEY] = part | unfinished_update(module)


def restore_state(checkpoint: dict[str, Any], module: GRPOModule) -> dict[str, Tensor]:
    """Refuse what belongs to another run, and put back what Lightning does not know; to be called by all processes.

    Returns:
        Gradients of an unfinished update, for `continue_update`.
    """
    trainer = module.trainer
    fitting = trainer.state.fn == "fit"
    part = check_fingerprint(checkpoint, fingerprint(module) if fitting else module.policy.fingerprint())
    if "old" in part:
        module.policy.load_old_state(part["old"])
    if not fitting:
        return {}
    module.nonfinite.load_state_dict(part.get("nonfinite", {}))
    module.old.load_state_dict(part.get("old_velocity", {}))
    place = (trainer.global_rank, trainer.world_size)
    module.outputs = outputs_of(part, *place)
    move_within_epoch(checkpoint, trainer.datamodule.position_in(checkpoint))  # type: ignore[attr-defined]
    return gradients_of(part, *place, sharded=module.device_mesh is not None)


def trainable_names(module: nn.Module) -> list[str]:
    """Names of the parameters that train."""
    return [name for name, p in module.named_parameters() if p.requires_grad]


def name_optimizer_states(checkpoint: dict[str, Any], module: nn.Module, optimizers: list[Any]) -> None:
    """Key optimizer states by parameter name.

    Lightning numbers them, over trainable parameters in one strategy and over all parameters in another: a resume
    across strategies would hand moments to the wrong parameters, without an error.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    everything = list(names.values())
    for optimizer, state in zip(optimizers, checkpoint.get("optimizer_states", []), strict=False):
        if not state or not all(isinstance(i, int) for i in state["state"]):
            continue
        mine = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        ids = [i for group in state["param_groups"] for i in group["params"]]
        by_id = dict(zip(ids, mine, strict=True)) if ids == list(range(len(mine))) else dict(enumerate(everything))
        state["state"] = {by_id[i]: value for i, value in state["state"].items()}
        state["param_groups"] = [{**g, "params": [by_id[i] for i in g["params"]]} for g in state["param_groups"]]


def unfinished_update(module: GRPOModule) -> dict[str, Any]:
    """Gradients and outputs of an update's micro-batches so far, if there are any; to be called by all processes.

    Both are lists by process. Sharded gradients, which are averages over the processes already, are a list of one.
    """
    if not module.outputs:
        return {}
    reshard(module)
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    gradients = on_first(found.items())
    outputs = gather_objects([{k: v.cpu() for k, v in o.items()} for o in module.outputs])
    everywhere = [gradients] if is_sharded(found) else gather_on_first(module.trainer, gradients)
    return {"gradients": everywhere, "outputs": outputs}


def outputs_of(part: Mapping[str, Any], rank: int, world: int) -> list[dict[str, Tensor]]:
    """One process's outputs of an unfinished update, also where another number of processes began it.

    Args:
        part: guardlit's part of a checkpoint.
        rank: of the process that goes on.
        world: how many do.

    Returns:
        By micro-batch, or all as one: (B,) tensors, and `loss` ().
    """
    everywhere = part.get("outputs", [])
    if len(everywhere) == world or not everywhere:
        return list(everywhere[rank]) if everywhere else []

    def mine(key: str) -> Tensor:
        # micro-batch by micro-batch, and in it a process's row q at position q * world + rank
        whole = torch.cat(
            [torch.stack([o[key] for o in batch], dim=-1).flatten() for batch in zip(*everywhere, strict=True)]
        )
        return whole.mean() if key == "loss" else whole[rank::world]

    return [{key: mine(key) for key in everywhere[0][0]}]


def gradients_of(part: Mapping[str, Any], rank: int, world: int, sharded: bool) -> dict[str, Tensor]:
    """One process's gradients of an unfinished update; their average for processes that did not begin it.

    Args:
        part: guardlit's part of a checkpoint.
        rank: of the process that goes on.
        world: how many do.
        sharded: whether gradients are averages over all processes.
    """
    everywhere = part.get("gradients", [])
    if len(everywhere) == world and not sharded:
        return dict(everywhere[rank])
    return {name: torch.stack([g[name] for g in everywhere]).mean(0) for name in (everywhere or [{}])[0]}


def restore_update(module: GRPOModule, gradients: Mapping[str, Tensor]) -> None:
    """Put back, on the parameters' device, what `gradients_of` and `outputs_of` gave."""
    parameters = dict(module.named_parameters())
    for name, gradient in gradients.items():
        parameters[name].grad = shard_like(gradient, parameters[name])
    module.outputs = [{k: v.to(module.device) for k, v in o.items()} for o in module.outputs]


def keep_trainable(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Drop frozen weights: the base model has its own files."""
    kept = set(trainable_names(module))
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}


def fingerprint(module: GRPOModule) -> dict[str, str]:
    """What a checkpoint and a run share if they are one run: model, sampler, prompts, batch arithmetic and seed."""
    run = {"sde": f"{type(module.sde).__name__}{vars(module.sde)}", "rollout": str(module.rollout)}
    data = getattr(module.trainer, "datamodule", None)
    if data is not None and hasattr(data, "plan"):
        # any number of processes and any micro-batch make the same updates
        free = ("world", "micro_batch", "train_steps")
        run |= {f"data.{name}": str(value) for name, value in vars(data.plan).items() if name not in free}
        run["data.seed"] = str(data.seed)
        run["data.train"] = data.train.digest
        run["data.val"] = f"{data.val.digest} x {data.val_images}"
        run["evaluation"] = str(module.evaluation)
    return module.policy.fingerprint() | run


def check_fingerprint(checkpoint: Mapping[str, Any], expected: Mapping[str, str]) -> Mapping[str, Any]:
    """Return guardlit's part of a checkpoint; raises `GuardlitError` when it belongs to another model or run."""
    part = checkpoint.get(KEY)
    if not isinstance(part, Mapping):
        raise GuardlitError("the checkpoint was not written by guardlit: it has no entry 'guardlit'")
    saved = part["fingerprint"]
    for name, value in expected.items():
        if saved.get(name) == value:
            continue
        change = f"the checkpoint was saved with {name} = {saved.get(name)}; this run has {value}"
        if name not in VALIDATION:
            raise GuardlitError(change)
        rank_zero_warn(f"{change}: validation scores before and after it cannot be compared")
    return part
