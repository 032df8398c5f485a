"""Every callback and logger of Lightning: what it does in a run of rounds, or why it is refused."""

from __future__ import annotations

from collections.abc import Iterable

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from guardlit.errors import GuardlitError, did_you_mean
from guardlit.training.limits.entry import Entry, refuse

AVERAGE = "it copies the model and averages frozen weights too; take guardlit_callbacks.TrainableEMA"
ON_EXCEPTION = (
    "an exception may come within an update, from where no run can resume; a run keeps interrupted.ckpt where it can, "
    "and its last round"
)

CALLBACKS: dict[str, Entry] = {
    "BackboneFinetuning": refuse("policy.lora or full fine-tuning says what trains, from the first round on"),
    "BaseFinetuning": refuse("policy.lora or full fine-tuning says what trains, from the first round on"),
    "BasePredictionWriter": Entry("the base of your own, for `guardlit.Trainer.predict`"),
    "BatchSizeFinder": refuse("data.micro_batch: auto finds the largest micro-batch"),
    "Callback": Entry("the base of your own"),
    "Checkpoint": Entry("the base of your own"),
    "DeviceStatsMonitor": Entry("logs memory and load of the device"),
    "EarlyStopping": Entry("stops by a logged key, such as `val/reward` with `mode: max`"),
    "GradientAccumulationScheduler": refuse(
        "the micro-batches of an update follow from data.updates_per_round and data.micro_batch"
    ),
    "LambdaCallback": Entry("hooks from functions, in Python"),
    "LearningRateFinder": refuse(
        "at the old policy the loss is the same for every learning rate; compare the rewards of short runs"
    ),
    "LearningRateMonitor": Entry("logs the learning rates"),
    "ModelCheckpoint": Entry(
        "keeps other checkpoints next to those of the two newest rounds",
        f"with `save_on_exception: true`, {ON_EXCEPTION}",
    ),
    "ModelPruning": refuse(
        "a pruned weight is another parameter, that checkpoints, the old policy and the export do not know"
    ),
    "ModelSummary": Entry("prints a table of modules"),
    "OnExceptionCheckpoint": refuse(ON_EXCEPTION),
    "ProgressBar": Entry("the base of your own, in place of the line of progress"),
    "RichModelSummary": Entry("prints a table of modules"),
    "RichProgressBar": Entry("a bar of micro-batches in place of the line of progress"),
    "StochasticWeightAveraging": refuse(AVERAGE),
    "SpikeDetection": refuse(
        "the loss of a micro-batch is near 0 in any state of the policy; take guardlit_callbacks.GradientSpikes"
    ),
    "ThroughputMonitor": Entry("needs `batch_size_fn`; a run logs `time/*` by itself"),
    "Timer": Entry("as `max_time`"),
    "TQDMProgressBar": Entry("a bar of micro-batches in place of the line of progress"),
    "EMAWeightAveraging": refuse(AVERAGE),
    "WeightAveraging": refuse(AVERAGE),
}
"""By name, in Lightning's order."""

LOGGERS: dict[str, Entry] = {
    "LitLogger": Entry("needs litlogger and an account"),
    "CometLogger": Entry("needs comet-ml; offline without a key"),
    "CSVLogger": Entry("`metrics.csv`; every run has one; in short `csv`"),
    "Logger": Entry("the base of your own"),
    "MLFlowLogger": Entry("in short `mlflow`; needs mlflow"),
    "TensorBoardLogger": Entry("a run has one by default; in short `tensorboard`, in the run's folder"),
    "WandbLogger": Entry("in short `wandb`; needs the extra `wandb`; `offline: true` without an account"),
}
"""By name, in Lightning's order."""


VALIDATED = ("val/", "gold/", "kl/")
"""How keys begin that every validation logs."""


def check_monitors(callbacks: Iterable[object], logged: Iterable[str]) -> None:
    """Refuse a key to watch that no validation logs, after the first one.

    Args:
        callbacks: of the Trainer.
        logged: keys after a validation.

    Raises:
        GuardlitError: naming the key and a similar one.
    """
    known = [key for key in logged if key.startswith(VALIDATED)]
    for callback in callbacks:
        key = callback.monitor if isinstance(callback, EarlyStopping | ModelCheckpoint) else None
        if key is not None and key.startswith(VALIDATED) and key not in known:
            hint = did_you_mean(key, known, "logged are")
            raise GuardlitError(f"trainer.callbacks: {type(callback).__name__}: monitor={key} is not logged; {hint}")


def check_callbacks(callbacks: Iterable[object]) -> None:
    """Refuse Lightning's callbacks that a run of rounds cannot have, and classes derived from them.

    Raises:
        GuardlitError: naming the first one and what would be right.
    """
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_on_exception:
            raise GuardlitError(f"trainer.callbacks: ModelCheckpoint: {CALLBACKS['ModelCheckpoint'].refused}")
        for kind in type(callback).__mro__:
            entry = CALLBACKS.get(kind.__name__) if kind.__module__.startswith("lightning.pytorch.") else None
            if entry is not None and not entry.allows(callback):
                raise GuardlitError(f"trainer.callbacks: {kind.__name__}: {entry.refused}")
