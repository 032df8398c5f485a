"""Which of Lightning's strategies a run may have."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy

from guardlit.errors import GuardlitError, did_you_mean
from guardlit.processes.lightning_internals import start_method
from guardlit.training.sharded_strategy import ShardedStrategy

NAMES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "fsdp")
"""Those that a run may have, by name."""


def checked_strategy(strategy: Any, precision: str) -> Any:
    """The strategy that a run takes for the Trainer's argument; `fsdp` is `ShardedStrategy`.

    Args:
        strategy: name or instance.
        precision: of the Trainer.

    Raises:
        GuardlitError: one with which a run cannot work.
    """
    if strategy == "fsdp":
        strategy = ShardedStrategy()  # Lightning's own of this name (FSDP1) cannot run a rollout
    if isinstance(strategy, ShardedStrategy):
        strategy.check(precision)
    elif isinstance(strategy, str) and strategy not in NAMES:
        raise GuardlitError(
            f"trainer.strategy={strategy} is not supported: {did_you_mean(strategy, NAMES, 'take one of')}"
        )
    elif isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        raise GuardlitError(f"trainer.strategy={type(strategy).__name__} is not supported: take ddp or fsdp")
    elif isinstance(strategy, DDPStrategy) and start_method(strategy) != "popen":
        raise GuardlitError(
            f"trainer.strategy: start_method={start_method(strategy)} is not supported: a run cannot be copied into "
            "another process; take popen, its default"
        )
    return strategy
