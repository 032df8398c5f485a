"""`--trainer.strategy fsdp`: a policy whose weights are sharded over the ranks (FSDP2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from guardlit_callbacks.distributed.sharded import on_first, reshard, shard_like
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.constants import default_pg_timeout
from torch.distributed.tensor import DTensor

from guardlit.checkpoints.io import agree_on_intact, remove_leftovers, write_error
from guardlit.checkpoints.shards import read_shards, write_shards
from guardlit.devices.dtypes import DTYPES
from guardlit.errors import GuardlitError
from guardlit.processes.lightning_internals import shard_over_all_ranks

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from guardlit.policies.base import Shard


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks: each keeps its part of every weight and gathers one block of the network at a time.

    What `--trainer.strategy fsdp` stands for. It shards the policy's network; VAE, text encoders and scorers are
    replicated. A checkpoint is one file, or a folder to which every rank writes its part; either resumes under any
    strategy and world size.

    Example:
        ```yaml
        trainer:
          strategy:
            class_path: guardlit.training.sharded_strategy.ShardedStrategy
            init_args: {param_dtype: bf16, save_distributed_checkpoint: true}
        ```

    Args:
        reshard_after_forward: release a block's gathered weights after its forward pass. False keeps the network
            gathered through a whole rollout, and from a micro-batch's forward pass to its backward pass: faster
            rollouts, and the memory of all of it.
        param_dtype: precision to gather in: null is that of `trainer.precision`, for what is stored in float32 half of
            the traffic under `bf16-mixed`. With `fp32` there, every rank keeps a half-precision copy of all weights
            from a forward pass to its backward pass, since autocast makes one of each.
        reduce_dtype: precision in which gradients are summed.
        save_distributed_checkpoint: write checkpoints as folders, each rank its part of weights and optimizer: rank 0
            then need not hold all of them at once. An average, and within a round the old policy, are fully in its
            memory either way.
        process_group_backend: by default `nccl` on GPUs and `gloo` on CPUs.
        timeout: of a collective.
    """

    def __init__(
        self,
        reshard_after_forward: bool = True,
        param_dtype: Literal["fp32", "bf16", "fp16"] | None = None,
        reduce_dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.reshard_after_forward, self.writes_folders = reshard_after_forward, save_distributed_checkpoint
        self._param_dtype, self._reduce_dtype = param_dtype, reduce_dtype

    def check(self, precision: str) -> None:
        """Refuse a `trainer.precision` that sharding does not support; raises `GuardlitError`."""
        if precision in ("16-mixed", "16"):
            raise GuardlitError(
                "trainer.precision=16-mixed: its loss scaler does not work with trainer.strategy=fsdp; take bf16-mixed"
                ", with model.old_velocity=recomputed where the noise floor asks for it, or trainer.strategy=ddp"
            )
        if self._param_dtype in ("bf16", "fp16") and precision not in ("bf16-mixed", "bf16"):
            raise GuardlitError(
                f"trainer.strategy: param_dtype={self._param_dtype} needs trainer.precision=bf16-mixed, whose autocast "
                f"gives the network inputs to match; found {precision}"
            )

    def setup_environment(self) -> None:
        """Connect the ranks, all of them in one data-parallel dimension."""
        shard_over_all_ranks(self)
        super().setup_environment()

    def shard(self, network: nn.Module, blocks: Sequence[nn.Module]) -> None:
        """Shard a network over the ranks, in place; see `guardlit.policies.base.Shard`."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        half = "bf16" if self.precision_plugin.precision == "bf16-mixed" else None
        param_dtype = self._param_dtype or half
        # inputs stay as they are: timesteps and positions are float32 on purpose, and autocast knows what to cast
        policy = MixedPrecisionPolicy(
            param_dtype=DTYPES[param_dtype] if param_dtype else None,
            reduce_dtype=DTYPES[self._reduce_dtype],
            cast_forward_inputs=False,
        )
        for module in (*blocks, network):
            fully_shard(
                module,
                mesh=self.device_mesh["data_parallel"],
                reshard_after_forward=self.reshard_after_forward,
                mp_policy=policy,
            )

    # checkpoints --------------------------------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Through `load_optimizer_state_dict`, as under other strategies."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Trainable parameters by name: full tensors on rank 0, or every rank's part."""
        assert self.lightning_module is not None
        reshard(self.lightning_module)
        named = ((name, p.detach()) for name, p in self.lightning_module.named_parameters() if p.requires_grad)
        return dict(named) if self.writes_folders else on_first(named)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy weights into parameters; those that the checkpoint does not hold are unchanged."""
        assert self.lightning_module is not None
        reshard(self.lightning_module)
        parameters = dict(self.lightning_module.named_parameters())
        with torch.no_grad():
            for name, tensor in checkpoint["state_dict"].items():
                parameters[name].copy_(shard_like(tensor, parameters[name]))

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's state: full tensors on rank 0, or every rank's part."""
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state: dict[str, Any] = inner.state_dict()
        _check_shapes(type(inner).__name__, state)
        if self.writes_folders:
            return state
        return {**state, "state": {i: _on_first(values) for i, values in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Shard full tensors as their parameters are, in the optimizer's order."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            places = [place for group in state["param_groups"] for place in group["params"]]
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = {
                place: {k: _shard(v, parameter) for k, v in state["state"][place].items()}
                for place, parameter in zip(places, parameters, strict=True)
                if place in state["state"]
            }
            optimizer.load_state_dict({**state, "state": sharded})

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write one file, or a folder with every rank's part."""
        path = Path(self.broadcast(str(filepath)))
        if self.writes_folders:
            if self.is_global_zero and path.parent.is_dir():
                remove_leftovers(path.parent)
            try:
                write_shards(checkpoint, path, self.barrier)
            except (OSError, RuntimeError, CheckpointException) as error:
                raise write_error(path, error) from error
        else:
            Strategy.save_checkpoint(self, checkpoint, path)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a file, or this rank's part of a folder."""
        path = Path(self.broadcast(str(checkpoint_path)))
        if path.is_dir():
            assert self.lightning_module is not None
            reshard(self.lightning_module)
            return read_shards(agree_on_intact(path), dict(self.lightning_module.named_parameters()))
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(path)
        return checkpoint

    def remove_checkpoint(self, filepath: Any) -> None:
        """Remove a file or a folder."""
        if self.is_global_zero:
            self.checkpoint_io.remove_checkpoint(filepath)


def _check_shapes(optimizer: str, state: Mapping[str, Any]) -> None:
    """Refuse a state that is neither sharded like its parameter nor a number: it differs between ranks."""
    for values in state["state"].values():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and not isinstance(value, DTensor):
                raise GuardlitError(
                    f"{optimizer} keeps '{name}' in another shape than its parameters, which trainer.strategy=fsdp can "
                    "neither save nor shard; take an optimizer such as AdamW or SGD"
                )


def _on_first(values: Mapping[str, Any]) -> dict[str, Any]:
    tensors = on_first((k, v) for k, v in values.items() if isinstance(v, Tensor))
    return {k: v for k, v in {**values, **tensors}.items() if k in tensors or not isinstance(v, Tensor)}


def _shard(value: Any, parameter: nn.Parameter) -> Any:
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return shard_like(value, parameter)
    return value


def sharding(module: pl.LightningModule) -> Shard | None:
    """How a module's network is to be sharded over ranks; None where it is replicated."""
    if module.device_mesh is None:
        return None
    strategy = module.trainer.strategy
    if not isinstance(strategy, ShardedStrategy):
        raise GuardlitError(f"trainer.strategy: {type(strategy).__name__} is not prepared for policies; take fsdp")
    return cast("Shard", strategy.shard)
