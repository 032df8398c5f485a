"""Exponential moving average of the trainable parameters only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from guardlit_callbacks.distributed.sharded import local, on_first, reshard, shard_like, sharded
from guardlit_callbacks.tools.lightning import (
    Callback,
    LightningModule,
    MisconfigurationException,
    Trainer,
    rank_zero_warn,
)
from guardlit_callbacks.tools.requirements import check_strategy

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


class TrainableEMA(Callback):
    """Keeps an exponential moving average of the parameters with `requires_grad`, and validates with it.

    A frozen base model is never copied: for a LoRA on a 12 B model the averages have the LoRA's size. They are float32,
    sharded as the parameters are (FSDP2), updated only after an optimizer step (so correct under gradient
    accumulation), saved in full by parameter name, and resumed exactly, also with another world size.

    During validation, test and prediction the averages replace the weights, which are restored afterwards, also after
    an error; a checkpoint written meanwhile holds the raw weights. `trainer.validate(ckpt_path=...)` uses the averages
    in that checkpoint. Logged keys: none.

    Example:
        ```python
        from guardlit_callbacks import TrainableEMA
        ema = TrainableEMA(decay=0.9, every=8)
        trainer = Trainer(callbacks=[ema])
        trainer.fit(module)
        with ema.average(module):
            export(module)
        ```

    Args:
        decay: fraction of the old average that an update keeps, in [0, 1).
        every: optimizer steps between updates; Flow-GRPO published a decay of 0.9 every 8 steps.
        warmup: lower decay at first: update n = 0, 1, ... keeps at most (1 + n) / (10 + n).
        use_for_validation: use the averages during validation, test and prediction.
        device: device of the averages; None for each parameter's device, "cpu" to save accelerator memory.

    Raises:
        ValueError: decay or every out of range.
        MisconfigurationException: nothing is trainable; a checkpoint's averages are of another model; FSDP1 or
            DeepSpeed.
    """

    def __init__(
        self,
        decay: float = 0.9,
        every: int = 1,
        warmup: bool = False,
        use_for_validation: bool = True,
        device: str | None = None,
    ) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"TrainableEMA: decay must be in [0, 1), got {decay}")
        if every < 1:
            raise ValueError(f"TrainableEMA: every must be at least 1 optimizer step, got {every}")
        self.decay, self.every, self.warmup = decay, every, warmup
        self.use_for_validation, self.device = use_for_validation, device
        self._parameters: dict[str, Tensor] = {}
        self._averages: dict[str, Tensor] = {}  # this rank's shard, float32
        self._raw: dict[str, Tensor] = {}  # the weights, while the averages replace them
        self._loaded: Mapping[str, Any] | None = None  # a checkpoint's state, until there are parameters to match
        self._updates, self._step = 0, 0
        self._stage = ExitStack()

    # --- the average ---------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts from the weights, unless a checkpoint has averages."""
        check_strategy(trainer, self)
        if not self._bind(pl_module):
            self._averages = {name: self._average_of(parameter) for name, parameter in self._parameters.items()}
            self._updates = 0
        self._step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts averages of parameters that became trainable since, as by Lightning's `BackboneFinetuning`."""
        if batch_idx == 0:
            for name, parameter in pl_module.named_parameters():
                if parameter.requires_grad and _clean(name) not in self._parameters:
                    self._parameters[_clean(name)] = parameter
                    self._averages[_clean(name)] = self._average_of(parameter)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates the averages if the optimizer has stepped past a multiple of `every`."""
        previous, self._step = self._step, trainer.global_step
        skipped = pl_module.automatic_optimization and all(p.grad is None for p in self._parameters.values())
        if self._step // self.every == previous // self.every or skipped:
            return
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates)) if self.warmup else self.decay
        averages = [self._averages[name] for name in self._parameters]
        weights = [
            local(parameter).to(average.device, torch.float32)
            for parameter, average in zip(self._parameters.values(), averages, strict=True)
        ]
        torch._foreach_lerp_(averages, weights, 1.0 - decay)  # a few kernels, not one per parameter
        self._updates += 1

    def _average_of(self, parameter: Tensor) -> Tensor:
        here = local(parameter)
        return here.to(self.device or here.device, torch.float32, copy=True)

    @torch.inference_mode(False)  # validation may bind first, and training must be able to update these tensors
    def _bind(self, pl_module: LightningModule) -> bool:
        """Finds the parameters and matches a loaded state to them; False if there are no averages yet."""
        reshard(pl_module)
        every = {_clean(name): parameter for name, parameter in pl_module.named_parameters()}
        names = [name for name, parameter in every.items() if parameter.requires_grad]
        if self._loaded is not None:
            loaded, self._loaded = self._loaded, None
            _check_fit(loaded["averages"], every, names)
            self._averages = {
                name: self._average_of(shard_like(average, every[name])) for name, average in loaded["averages"].items()
            }
            self._updates = loaded["updates"]
        self._parameters = {name: every[name] for name in self._averages or names}
        if not self._parameters:
            raise MisconfigurationException(
                "TrainableEMA: the module has no parameter with requires_grad; set it before training starts"
            )
        return bool(self._averages)

    # --- swapping weights------------------------------------------------------------------------------------------

    @contextmanager
    def average(self, pl_module: LightningModule) -> Iterator[None]:
        """Context in which the averages replace the weights; it has no effect within another one.

        Raises:
            MisconfigurationException: there are no averages: nothing was trained and no checkpoint loaded.
        """
        if self._raw:
            yield
            return
        if not self._bind(pl_module):
            raise MisconfigurationException(
                "TrainableEMA: there are no averages yet; train first, or load_state_dict a checkpoint's callback state"
            )
        for name, parameter in self._parameters.items():
            here, average = local(parameter), self._averages[name]
            self._raw[name] = here.to(average.device, copy=True)
            here.copy_(average)
        try:
            yield
        finally:
            reshard(pl_module)
            for name, raw in self._raw.items():
                local(self._parameters[name]).copy_(raw)
            self._raw = {}

    def _enter(self, pl_module: LightningModule) -> None:
        if self.use_for_validation and (self._averages or self._loaded is not None):
            self._stage.enter_context(self.average(pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swaps the averages in."""
        self._enter(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the weights."""
        self._stage.close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swaps the averages in."""
        self._enter(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the weights."""
        self._stage.close()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swaps the averages in."""
        self._enter(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the weights."""
        self._stage.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores the weights if validation raised, so that a checkpoint written after the error is correct."""
        self._stage.close()

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The averages in full, by parameter name, on the CPU. Collective: Lightning calls every rank."""
        if self._loaded is not None:
            return dict(self._loaded)
        if not self._averages:
            return {}
        averages = ((name, sharded(average, self._parameters[name])) for name, average in self._averages.items())
        return {"averages": on_first(averages), "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state until the parameters exist: FSDP2 may shard them later."""
        self._loaded, self._averages = state_dict, {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Drops averages that do not belong to the loaded weights."""
        if self.state_key not in checkpoint.get("callbacks", {}):
            self._averages, self._loaded = {}, None
            rank_zero_warn("TrainableEMA: the checkpoint holds no averages; they start from its weights")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Writes the raw weights even while the averages replace them, as when another callback saves."""
        weights = checkpoint.get("state_dict", {})
        names = {_clean(name): name for name in weights}
        parts = {name: sharded(part, self._parameters[name]) for name, part in self._raw.items()}
        spread = {name: part for name, part in parts.items() if isinstance(weights.get(names.get(name)), DTensor)}
        # ranks above 0 hold no weights under FSDP2, but must take part in the collective
        full = on_first((name, part) for name, part in parts.items() if name not in spread)
        weights.update({names[name]: tensor for name, tensor in (full | spread).items() if name in names})


def _clean(name: str) -> str:
    """The parameter's name without the prefixes of torch.compile, FSDP1 and activation checkpointing."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _check_fit(averages: Mapping[str, Tensor], parameters: Mapping[str, Tensor], trainable: Sequence[str]) -> None:
    """Refuses averages of another model, in one line."""
    faults = [f"{name!r} is missing" for name in trainable if name not in averages]
    faults += [f"{name!r} is unexpected" for name in averages if name not in parameters]
    faults += [
        f"{name!r} has shape {tuple(average.shape)} where the model has {tuple(parameters[name].shape)}"
        for name, average in averages.items()
        if name in parameters and average.shape != parameters[name].shape
    ]
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise MisconfigurationException(
            f"TrainableEMA: the checkpoint's averages are of another model: {'; '.join(faults[:3])}{more}; "
            "load a checkpoint of this model"
        )
