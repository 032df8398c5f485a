"""Collectives, sharded parameters and gradient norms for one or several ranks. Public; imports only `tools`.

| name | what it does |
|---|---|
| `gather_objects` | an object of every rank, on every rank |
| `is_first` | whether this is rank 0 |
| `distinct` | first positions of repeated sample indices |
| `interleave` | the samples of all ranks in the order of the data set |
| `local`, `full_tensor` | this rank's shard of a parameter; the full tensor on every rank |
| `sharded`, `shard_like` | a tensor distributed as a parameter is, from this rank's shard or from the full tensor |
| `is_sharded`, `reshard` | whether tensors are sharded; free what FSDP2 gathered |
| `on_first` | full copies on the CPU, of sharded tensors on rank 0 only |
| `gradient_norm`, `total_norm`, `zero_fraction` | of a module's gradients; of any gradients |
| `trained_parameters` | what the optimizers train |

`SyncDDP` is in `distributed.sync_ddp`, apart from these since it needs Lightning.
"""

from guardlit_callbacks.distributed.gather import distinct, gather_objects, interleave, is_first
from guardlit_callbacks.distributed.gradients import gradient_norm, total_norm, trained_parameters, zero_fraction
from guardlit_callbacks.distributed.sharded import (
    full_tensor,
    is_sharded,
    local,
    on_first,
    reshard,
    shard_like,
    sharded,
)

__all__ = [
    "distinct",
    "full_tensor",
    "gather_objects",
    "gradient_norm",
    "interleave",
    "is_first",
    "is_sharded",
    "local",
    "on_first",
    "reshard",
    "shard_like",
    "sharded",
    "total_norm",
    "trained_parameters",
    "zero_fraction",
]
