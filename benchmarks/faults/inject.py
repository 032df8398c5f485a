"""How a fault gets into a run: a method of the process's guardlit does something else at its n-th call."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.processes import Prepare

Act = Callable[..., Any]

SAVE = "lightning.pytorch:Trainer.save_checkpoint"
STEP = "guardlit.training.module:GRPOModule.training_step"
UPDATE = "guardlit.training.module:GRPOModule.on_before_optimizer_step"
VALIDATE = "guardlit.training.module:GRPOModule.validation_step"
VELOCITY = "guardlit.policies:SD3Policy.velocity"
SCORE = "guardlit.rewards:JPEGCompressibility.score"


def before(target: str, call: int, act: Act, rank: int | None = None) -> Prepare:
    """Do something before the call of this number, counted from 1; `act` gets the call's arguments."""

    def wrap(original: Act, number: int, *args: Any, **kwargs: Any) -> Any:
        if number == call:
            act(*args)
        return original(*args, **kwargs)

    return replace(target, wrap, rank)


def after(target: str, call: int, act: Act, rank: int | None = None) -> Prepare:
    """Do something after the call of this number; `act` gets the call's arguments."""

    def wrap(original: Act, number: int, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if number == call:
            act(*args)
        return result

    return replace(target, wrap, rank)


def spoil(target: str, calls: range, change: Act, rank: int | None = None) -> Prepare:
    """Let `change` alter what the calls of these numbers give."""

    def wrap(original: Act, number: int, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        return change(result) if number in calls else result

    return replace(target, wrap, rank)


def replace(target: str, wrap: Act, rank: int | None = None) -> Prepare:
    """Put `wrap`, which gets the original and the call's number, around `module:Class.method` or `module:function`.

    Args:
        target: what is called.
        wrap: called in its place, from the first call on.
        rank: of the process in which this is done; all by default.
    """

    def prepare(mine: int) -> None:
        if rank is not None and mine != rank:
            return
        module, _, path = target.partition(":")
        *owners, name = path.split(".")
        owner: Any = import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        original, calls = getattr(owner, name), [0]

        def replaced(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            return wrap(original, calls[0], *args, **kwargs)

        setattr(owner, name, replaced)

    return prepare


# actions --------------------------------------------------------------------------------------------------------------


def send(number: int, times: int = 1) -> Act:
    """Send a signal to this process."""

    def act(*_: Any) -> None:
        for _ in range(times):
            os.kill(os.getpid(), number)

    return act


def limit(kind: int, value: int | Callable[[], int]) -> Act:
    """Lower a limit of the process, `resource.RLIMIT_FSIZE` or the like."""

    def act(*_: Any) -> None:
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (value() if callable(value) else value, hard))

    return act


def next_descriptor() -> int:
    """The number that the next file to be opened would get."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


def fail(error: Exception) -> Act:
    """Raise an error."""

    def act(*_: Any) -> None:
        raise error

    return act


def spoil_gradient(module: Any, *_: Any) -> None:
    """Make one number of the gradient NaN."""
    gradient = next(p.grad for p in module.parameters() if p.grad is not None)
    gradient.flatten()[0] = torch.nan


def infinite(velocity: torch.Tensor) -> torch.Tensor:
    """A velocity of which one number is infinite."""
    velocity = velocity.clone()
    velocity[(0,) * velocity.ndim] = torch.inf
    return velocity


def no_numbers(result: Any) -> Any:
    """A reward of NaN for every image."""
    from guardlit.types import RewardResult

    return RewardResult.from_values(torch.full_like(result.values, torch.nan))


def one_no_number(result: Any) -> Any:
    """A reward of NaN for the first image."""
    from guardlit.types import RewardResult

    values = result.values.clone()
    values[0] = torch.nan
    return RewardResult.from_values(values)


DIE = send(signal.SIGKILL)


# corruption of files --------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    """Cut a file in half."""
    os.truncate(path, path.stat().st_size // 2)


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
