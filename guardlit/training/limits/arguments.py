"""Every argument of Lightning's Trainer: what it means for a run of rounds, and which values are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from numbers import Integral
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from guardlit.errors import GuardlitError
from guardlit.training.limits.callbacks import check_callbacks
from guardlit.training.limits.entry import Entry, at_least, but, none_of, only, refuse, text_of

PARTIAL = (
    "an update would be made of a part of its micro-batches and still be divided by all of them; shorten a round by "
    "data.prompts_per_round, data.images_per_prompt or data.updates_per_round"
)

ARGUMENTS: dict[str, Entry] = {
    "accelerator": Entry(
        "`cpu`, `cuda` (`gpu`), or `auto` for the first that there is; `cuda` where there is one by default",
        "log ratios are summed in float64, which it lacks, or it was never tried; take cuda or cpu",
        but("mps", "tpu", "MPS", "XLA"),
    ),
    "strategy": Entry(
        "`auto`, `ddp`, `ddp_find_unused_parameters_true`, or `fsdp`, which shards by FSDP2 (docs/clusters.md)",
        "a rollout cannot run under it, or its ranks would be forked from a process that has threads; take ddp or fsdp",
        but("spawn", "fork", "notebook", "deepspeed", "DeepSpeed", "xla", "XLA", "tpu", "cpu_offload", "FSDPStrategy"),
    ),
    "devices": Entry("ranks on a node; 1 by default. A round has the same images at every world size"),
    "num_nodes": Entry("nodes of the run", "must be at least 1", at_least(1)),
    "precision": Entry(
        "`32-true`, `bf16-mixed` or `16-mixed`; the noise floor of the log ratios follows from it",
        "weights that train, noise and log ratios are float32; take 32-true, bf16-mixed or 16-mixed",
        none_of("64", "64-true", "transformer-engine", "transformer-engine-float16"),
    ),
    "logger": Entry(
        "TensorBoard and CSV in the run folder by default; `csv` or `false` for `metrics.csv` alone, `wandb`, "
        "`tensorboard`, `mlflow`, any logger of the table below, or a list (docs/loggers.md)"
    ),
    "callbacks": Entry("any of the table below; the run adds its own"),
    "fast_dev_run": Entry(
        "a rehearsal of N micro-batches and N batches of validation images: it logs nothing and keeps no checkpoint, "
        "and its last update is made of the micro-batches that there are"
    ),
    "max_epochs": Entry(
        "rounds of the run; null with `max_steps` or `max_time` alone, -1 for no end",
        "must be at least -1",
        at_least(-1),
    ),
    "min_epochs": Entry("rounds before `max_time` or a callback may stop the run"),
    "max_steps": Entry("updates of the run; within a round it stops as `max_time` does"),
    "min_steps": Entry("updates before `max_time` or a callback may stop the run"),
    "max_time": Entry(
        "the time of a run, resumed parts included. It stops after a micro-batch and leaves `interrupted.ckpt`, from "
        "which the run resumes as if it had not been stopped (docs/reliability.md)"
    ),
    "limit_train_batches": Entry("`1.0`, all micro-batches of a round", PARTIAL, only(1.0)),
    "limit_val_batches": Entry(
        "batches of validation images on a rank, or a fraction of them; 0 draws none and scores none"
    ),
    "limit_test_batches": Entry("`1.0`", "there is no test stage; validate with limit_val_batches", only(1.0)),
    "limit_predict_batches": Entry("`1.0`", "`sample` draws every image that it is asked for; lower --n", only(1.0)),
    "overfit_batches": Entry("`0`, none", f"{PARTIAL}; train on few prompts by data.train_limit", only(0, 0.0)),
    "val_check_interval": Entry(
        "`1.0`, after a round",
        "a run that is stopped at a validation within a round would resume without it; set check_val_every_n_epoch",
        only(1.0),
    ),
    "check_val_every_n_epoch": Entry(
        "rounds from one validation to the next; 10 by default", "must be at least 1", at_least(1)
    ),
    "num_sanity_val_steps": Entry(
        "batches of validation images before the run, whose scores are thrown away; 0 by default, since every run "
        "validates at update 0",
        "must be at least -1",
        at_least(-1),
    ),
    "log_every_n_steps": Entry(
        "updates from one line of the log to the next; 1 by default", "must be at least 0", at_least(0)
    ),
    "enable_checkpointing": Entry(
        "the two newest rounds by default; without checkpoints a stopped run cannot be resumed"
    ),
    "enable_progress_bar": Entry("the line of progress"),
    "enable_model_summary": Entry("a table of modules; off by default"),
    "accumulate_grad_batches": Entry(
        "follows from data.updates_per_round and data.micro_batch; any other number is refused"
    ),
    "gradient_clip_val": Entry(
        "largest norm of an update's gradient; 1.0 by default, null for no limit", "must be at least 0", at_least(0)
    ),
    "gradient_clip_algorithm": Entry("`norm` by default, or `value` for each element"),
    "deterministic": Entry("deterministic algorithms on a GPU; `warn` where `true` refuses (docs/reliability.md)"),
    "benchmark": Entry("whether cuDNN tries its convolutions out; on a GPU another choice rounds otherwise"),
    "inference_mode": Entry("`false` by default; `true` saves little where no gradient is wanted"),
    "use_distributed_sampler": Entry(
        "`false`", "the round assigns images to ranks by itself, and would lose some of them", only(False)
    ),
    "profiler": Entry(
        "`simple`, `advanced`, `pytorch`, or a profiler with its arguments",
        "it needs a TPU; take simple, advanced or pytorch",
        but("xla", "XLA"),
    ),
    "detect_anomaly": Entry("names the operation whose gradient is NaN, at half the speed"),
    "barebones": Entry(
        "`false`",
        "a run needs its callbacks, logs and checkpoints; `python -m benchmarks.loop` measures speed",
        only(False),
    ),
    "plugins": Entry(
        "a checkpoint plugin in place of the verified one, or the environment of a cluster",
        "weights that train, noise and log ratios are float32, and no network that trains has batch normalization",
        lambda value: all(
            map(
                but("DoublePrecision", "HalfPrecision", "Bitsandbytes", "TransformerEngine", "LayerSync"),
                _listed(value),
            )
        ),
    ),
    "sync_batchnorm": Entry(
        "`false`",
        "no network that trains has batch normalization, whose statistics a rollout would change",
        only(False),
    ),
    "reload_dataloaders_every_n_epochs": Entry("changes nothing: a round is collected when it begins"),
    "default_root_dir": Entry("folder of the run folders `version_K`; `runs/guardlit` by default"),
    "enable_autolog_hparams": Entry("changes nothing: the settings of a run are in its `config.yaml`"),
    "model_registry": refuse("a run uploads no weights; `guardlit export` and `guardlit push` do"),
}
"""By name, in Lightning's order."""


KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("max_epochs", "min_epochs", "max_steps", "min_steps"), (Integral,)),
    "max_time": (str, timedelta, dict),
    "logger": (bool, Logger),
    "callbacks": (Callback,),
}
"""Types of arguments, or of the items of a list, that Lightning finds out about late or never."""


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of the Trainer that cannot mean what they say.

    Args:
        arguments: by name; those that are left out have Lightning's defaults, null passes.

    Raises:
        GuardlitError: naming the first one, what was found and what would be right.
    """
    _check_kinds(arguments)
    for name, value in arguments.items():
        entry = ARGUMENTS.get(name)
        if value is not None and entry is not None and (problem := entry.problem(value)) is not None:
            shown = ", ".join(text_of(v).split()[0] for v in (value if isinstance(value, list) else [value]))
            raise GuardlitError(f"trainer.{name}={shown}{' ' if problem.startswith('must') else ': '}{problem}")
    for least, most in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        low, high = arguments.get(least), arguments.get(most)
        if low is not None and high is not None and 0 <= high < low:
            raise GuardlitError(f"trainer.{least}={low} is more than trainer.{most}={high}")
    check_callbacks(_listed(arguments.get("callbacks")))


def check_data(datamodule: object, *loaders: object) -> None:
    """Refuse a fit without a data module or with loaders: raises `GuardlitError`."""
    if datamodule is None or any(loader is not None for loader in loaders):
        raise GuardlitError(
            "fit needs datamodule=guardlit.PromptDataModule(...), which draws the rounds, and takes no loaders"
        )


def _check_kinds(arguments: Mapping[str, Any]) -> None:
    for name, kinds in KINDS.items():
        for item in _listed(arguments.get(name)):
            if not isinstance(item, kinds):
                found = f"the class {item.__name__}, not an instance" if isinstance(item, type) else repr(item)
                wanted = " or ".join("int" if kind is Integral else kind.__name__ for kind in kinds)
                raise GuardlitError(f"trainer.{name}: expected {wanted}, found {found}")


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else [value]
