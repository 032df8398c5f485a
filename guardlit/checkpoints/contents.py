"""What guardlit adds to a Lightning checkpoint, and whether a checkpoint belongs to a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from guardlit.errors import GuardlitError
from guardlit.processes.lightning_internals import close_epoch

KEY = "guardlit"
"""The entry of a checkpoint under which guardlit's part stands."""

VALIDATION = ("data.val", "evaluation")
"""Entries of a fingerprint that may differ, since training does not depend on them."""


def complete(
    checkpoint: dict[str, Any],
    parameters: Mapping[str, Tensor],
    optimizers: Iterable[Optimizer],
    part: Mapping[str, Any],
    finished_rounds: int | None,
) -> None:
    """Turn Lightning's checkpoint into one from which the run resumes under any strategy and world size.

    Args:
        checkpoint: about to be written; changed in place.
        parameters: of the module, by name.
        optimizers: in the order of the checkpoint's states.
        part: guardlit's own state, with a fingerprint.
        finished_rounds: number of rounds behind the run; None within a round.
    """
    keep_trainable(checkpoint, parameters)
    name_optimizer_states(checkpoint, parameters, optimizers)
    if finished_rounds is not None:
        close_epoch(checkpoint, finished_rounds)
    checkpoint[KEY] = dict(part)


def keep_trainable(checkpoint: dict[str, Any], parameters: Mapping[str, Tensor]) -> None:
    """Drop frozen weights: the base model has its own files."""
    kept = {name for name, p in parameters.items() if p.requires_grad}
    checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}


def name_optimizer_states(
    checkpoint: Mapping[str, Any], parameters: Mapping[str, Tensor], optimizers: Iterable[Optimizer]
) -> None:
    """Key optimizer states by parameter name.

    Lightning numbers them, over trainable parameters in one strategy and over all parameters in another: a resume
    across strategies would assign moments to the wrong parameters, without an error.
    """
    names = {id(p): name for name, p in parameters.items()}
    over_all = dict(enumerate(names.values()))
    for optimizer, state in zip(optimizers, checkpoint.get("optimizer_states", []), strict=False):
        if not state or not all(isinstance(i, int) for i in state["state"]):
            continue
        trained = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        ids = [i for group in state["param_groups"] for i in group["params"]]
        numbered = dict(enumerate(trained)) if ids == list(range(len(trained))) else over_all
        state["state"] = {numbered[i]: value for i, value in state["state"].items()}
        state["param_groups"] = [{**g, "params": [numbered[i] for i in g["params"]]} for g in state["param_groups"]]


def fingerprint(
    policy: Mapping[str, str], sde: object, rollout: object, evaluation: object, data: Mapping[str, str]
) -> dict[str, str]:
    """What two runs have in common if one may resume the other's checkpoint.

    Args:
        policy: the policy's fingerprint.
        sde: the sampler, named by its class and its attributes.
        rollout: how training images are drawn.
        evaluation: how validation images are drawn.
        data: the data's fingerprint: batch arithmetic, seed and prompts.
    """
    sampler = {"sde": f"{type(sde).__name__}{vars(sde)}", "rollout": str(rollout)}
    return {**policy, **sampler, **data, "evaluation": str(evaluation)}


def check_fingerprint(checkpoint: Mapping[str, Any], expected: Mapping[str, str]) -> Mapping[str, Any]:
    """Return guardlit's part of a checkpoint; raises `GuardlitError` if it belongs to another model or run."""
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
