"""Everything that touches Lightning's private names, one function each.

`tests/processes/test_lightning_internals.py` has a test for each name, which fails where a new Lightning has another.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import WandbLogger
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

# loops ----------------------------------------------------------------------------------------------------------------


def validate_now(trainer: pl.Trainer) -> None:
    """Validate before the first training batch; Lightning does so only after one."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.setup_data()
    if not loop.skip:
        trainer.validating = True
        loop.run()
        trainer.training = True


def validate_last_round(trainer: pl.Trainer) -> None:
    """Let every fit validate after its last round too, whatever `check_val_every_n_epoch` says.

    The last round is the one that reaches `max_epochs` or `max_steps`, or at whose end the run is asked to stop.
    """
    loop = trainer.fit_loop.epoch_loop
    is_due = loop._should_check_val_fx

    def is_last_round() -> bool:
        epochs, steps = trainer.max_epochs or -1, trainer.max_steps
        ends = 0 < epochs <= trainer.current_epoch + 1 or 0 < steps <= trainer.global_step
        return ends or (trainer.should_stop and trainer.fit_loop._can_stop_early)

    def is_due_or_last(data_fetcher: Any) -> bool:
        last = loop.batch_progress.is_last_batch and trainer.enable_validation and is_last_round()
        return last or is_due(data_fetcher)

    loop._should_check_val_fx = is_due_or_last  # type: ignore[method-assign]


def repeat_validation(trainer: pl.Trainer) -> None:
    """Validate after a round as Lightning does, which counts the round's last update only afterwards."""
    trainer.fit_loop.epoch_loop._batches_that_stepped -= 1
    validate_now(trainer)
    trainer.fit_loop.epoch_loop._batches_that_stepped += 1


def reset_validation_progress(trainer: pl.Trainer) -> None:
    """Let a checkpoint that is written within a validation start the validation again."""
    trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset_on_run()


def is_last_batch(trainer: pl.Trainer) -> bool:
    """Whether the round's last micro-batch is done."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def is_within_round(trainer: pl.Trainer) -> bool:
    """Whether a resumed fit starts in the middle of a round."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready > 0


def is_within_batch(trainer: pl.Trainer) -> bool:
    """Whether a micro-batch has begun whose gradients, and whose update where one was due, are not made yet."""
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(progress.ready > progress.processed)  # type: ignore[attr-defined]


def close_only_complete_epochs(trainer: pl.Trainer, on_partial: Callable[[], None]) -> None:
    """Leave an epoch open that the Trainer's limits or `should_stop` end before its last batch.

    Lightning counts such an epoch as finished, calls its last hooks, and validates where that was due at its end.

    Args:
        trainer: that has not started.
        on_partial: called instead of the last hooks; counters, gradients and loader are as after a batch.
    """
    loop, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    close, validation_due = loop.on_advance_end, epoch._should_check_val_fx

    def on_advance_end() -> None:
        close() if epoch._num_ready_batches_reached() else on_partial()

    def due(data_fetcher: Any) -> bool:
        stop, trainer.should_stop = trainer.should_stop, False
        try:
            return validation_due(data_fetcher)
        finally:
            trainer.should_stop = stop

    loop.on_advance_end, epoch._should_check_val_fx = on_advance_end, due  # type: ignore[method-assign]


def remove_limits(trainer: pl.Trainer) -> None:
    """Lift the limits on epochs and steps, for a fit that ends from within."""
    trainer.fit_loop.max_epochs, trainer.fit_loop.min_epochs = -1, 0
    trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.epoch_loop.min_steps = -1, None


def disable_sigterm_broadcast(trainer: pl.Trainer) -> None:
    """Stop Lightning from asking all ranks for a SIGTERM at every micro-batch, for which every GPU waits."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


# loops in a checkpoint ------------------------------------------------------------------------------------------------


def close_epoch(checkpoint: dict[str, Any], epochs: int) -> None:
    """Set the loops' counters to the state between two rounds: `epochs` are finished, none is started.

    A checkpoint written at the last batch of an epoch, in its last hooks or during the next rollout has counters from
    the middle of an epoch; a run that counts updates instead of epochs would then resume with a batch too many.

    Args:
        checkpoint: about to be written.
        epochs: number of finished rounds.
    """
    loops = checkpoint["loops"]["fit_loop"]
    for count in ("total", "current"):
        loops["epoch_progress"][count] = dict.fromkeys(loops["epoch_progress"][count], epochs)
    batches = loops["epoch_loop.batch_progress"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["total"] = dict.fromkeys(batches["total"], batches["total"]["ready"])
    batches["is_last_batch"] = False
    updates = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = updates


def move_within_epoch(checkpoint: dict[str, Any], batch: int) -> None:
    """Set the loops' counters to a batch of the epoch in progress.

    They count batches, whose number depends on world size and micro-batch.

    Args:
        checkpoint: about to be loaded.
        batch: index in the epoch; 0 for a checkpoint between two epochs, whose counters are right.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    moved = batch - progress["current"]["ready"] if batch else 0
    if moved:
        for count in ("total", "current"):
            progress[count] = {key: value + moved for key, value in progress[count].items()}


# connectors -----------------------------------------------------------------------------------------------------------


def log_at_global_step(trainer: pl.Trainer) -> None:
    """Make loggers get each value at the number of updates made so far.

    Lightning's own step of a value is the index of the last update, one less, so that `val/reward` of the first round
    would stand at 3 where a figure of the same images stands at 4.
    """
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    log_metrics = connector.log_metrics

    def at_global_step(metrics: Any, step: int | None = None) -> None:
        counted, loop._batches_that_stepped = loop._batches_that_stepped, trainer.global_step
        try:
            log_metrics(metrics, step)
        finally:
            loop._batches_that_stepped = counted

    connector.log_metrics = at_global_step  # type: ignore[method-assign]


def wandb_arguments(logger: WandbLogger) -> dict[str, Any]:
    """What the logger will give `wandb.init`, to be changed in place; `mode` says whether it is offline."""
    arguments: dict[str, Any] = logger._wandb_init
    if logger._offline:  # Lightning sets WANDB_MODE instead, which W&B has read by then where it was asked before
        arguments["mode"] = "offline"
    return arguments


def cluster_environment(trainer: pl.Trainer) -> object:
    """The plugin through which the Trainer learns of the cluster; `Strategy` has it only where it is distributed."""
    return trainer._accelerator_connector.cluster_environment


def next_hpc_checkpoint(trainer: pl.Trainer) -> Path:
    """The name under which a requeued SLURM job finds a checkpoint by itself, `hpc_ckpt_K.ckpt` with the next K."""
    return Path(trainer._checkpoint_connector.hpc_save_path(trainer.default_root_dir))


# strategies and launchers ---------------------------------------------------------------------------------------------


def collective_timeout(strategy: Strategy) -> timedelta | None:
    """The time-out of a strategy's collectives; None for a strategy of one rank."""
    return getattr(strategy, "_timeout", None)


def after_setup_environment(strategy: Strategy, call: Callable[[], None]) -> None:
    """Call a function as soon as the ranks have connected, which is before any hook of a callback.

    Args:
        strategy: of a Trainer that has not started.
        call: without arguments.
    """
    connect = strategy.setup_environment

    def setup_environment() -> None:
        connect()
        call()

    strategy.setup_environment = setup_environment  # type: ignore[method-assign]


def child_processes(strategy: Strategy) -> list[subprocess.Popen[bytes]]:
    """Ranks 1, 2, ... where Lightning started them from this process; else none."""
    return getattr(strategy.launcher, "procs", [])


def shard_over_all_ranks(strategy: ModelParallelStrategy) -> None:
    """Make all ranks one data-parallel dimension, before `setup_environment`; the default is tensor parallelism."""
    strategy._data_parallel_size = strategy.num_nodes * strategy.num_processes
    strategy._tensor_parallel_size = 1


def ddp_options(strategy: DDPStrategy) -> dict[str, Any]:
    """The arguments that a strategy of a Trainer that has not started will give DistributedDataParallel."""
    return strategy._ddp_kwargs


def start_method(strategy: DDPStrategy) -> str:
    """How Lightning starts the other ranks: `popen`, `spawn`, `fork` or `forkserver`."""
    return strategy._start_method
