"""`torch.compile` per block: all blocks of a kind share their graphs; on failure all run uncompiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from guardlit.errors import GuardlitError

GRAPHS = 64
"""Graphs of one kind of block: weight sets x with and without gradients x batch sizes; torch's own limit is 8."""
BACKEND = "inductor"


def blocks_of(transformer: Any) -> list[nn.Module]:
    """A diffusers model's repeated blocks, which diffusers marks as not to be split."""
    names = transformer._no_split_modules or ()
    return [module for module in transformer.modules() if type(module).__name__ in names]


class CompiledBlocks:
    """Blocks of a network, each compiled in place at its first call; parameter names do not change.

    Blocks of one kind share their graphs. Each weight set, batch size, and gradients on or off take a graph of fixed
    shapes: a round's last, smaller batch costs one more and does not affect the others. If torch cannot compile the
    forward or backward pass, or needs more than `GRAPHS`, all blocks run uncompiled from then on, with one warning.
    Sharded blocks (FSDP2) compile too.

    Args:
        blocks: of the network, as `blocks_of` gives them.

    Raises:
        GuardlitError: no blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        if not blocks:
            raise GuardlitError("compile=blocks: the network names no repeated blocks; set it to null")
        self.failed = False
        """Whether compiling failed, so that the blocks run uncompiled."""
        for block in blocks:
            block.compile(backend=BACKEND, dynamic=False)
            block._compiled_call_impl = self._guarded(block, block._compiled_call_impl)

    def _guarded(self, block: nn.Module, compiled: Any) -> Callable[..., Any]:
        import torch._dynamo as dynamo
        import torch._functorch.config as functorch
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        # torch's global configuration, patched only while a block runs: other compiled code keeps its limit
        limits = dynamo.config.patch(recompile_limit=GRAPHS, fail_on_recompile_limit_hit=True)
        # compile the backward pass with the forward pass: its errors occur while the block can still run uncompiled
        at_once = functorch.patch(force_non_lazy_backward_lowering=True)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.failed:
                try:
                    with limits, at_once:
                        return compiled(*args, **kwargs)
                except (FailOnRecompileLimitHit, TorchDynamoException) as error:
                    self._disable(error)
            return block._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

        return call

    def _disable(self, error: Exception) -> None:
        self.failed = True
        reason = " ".join(str(error).split())[:300]
        rank_zero_warn(
            f"compile=blocks: torch cannot compile, the blocks run uncompiled from here on "
            f"(model.policy.compile: null spares the attempt): {reason}"
        )
