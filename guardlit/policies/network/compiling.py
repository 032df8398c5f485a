"""`torch.compile` by block: one graph for all blocks of a kind, and a word where torch gives up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from guardlit.errors import GuardlitError

GRAPHS = 64
"""Of one kind of block: weight sets x with and without gradients x batch sizes; torch gives up after 8 by itself."""
BACKEND = "inductor"


class CompiledBlocks:
    """Blocks of a network, each compiled in place when it is first called; names of parameters stay as they are.

    Blocks of one kind share their graphs. Another weight set, another batch size, and gradients on or off take a graph
    each, of fixed shapes: a round's last, smaller batch costs one more and leaves the others as they are. Where torch
    cannot compile, be it the backward pass, or would need more than `GRAPHS`, all blocks run uncompiled from then on
    and one warning says so. Sharded blocks (FSDP2) compile alike.

    Args:
        blocks: of the network.

    Raises:
        GuardlitError: no blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        if not blocks:
            raise GuardlitError("compile=blocks: the network names no repeated blocks; set it to null")
        self.failed = False
        """Whether the blocks run uncompiled by now."""
        for block in blocks:
            block.compile(backend=BACKEND, dynamic=False)
            block._compiled_call_impl = self._guarded(block, block._compiled_call_impl)

    def _guarded(self, block: nn.Module, compiled: Any) -> Callable[..., Any]:
        import torch._dynamo as dynamo
        import torch._functorch.config as functorch
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        # in torch's own configuration, and only while a block runs: other compiled code keeps its limit
        limits = dynamo.config.patch(recompile_limit=GRAPHS, fail_on_recompile_limit_hit=True)
        # the backward pass is compiled with the forward pass: its errors, too, come while there is another way
        at_once = functorch.patch(force_non_lazy_backward_lowering=True)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.failed:
                try:
                    with limits, at_once:
                        return compiled(*args, **kwargs)
                except (FailOnRecompileLimitHit, TorchDynamoException) as error:
                    self._give_up(error)
            return block._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

        return call

    def _give_up(self, error: Exception) -> None:
        self.failed = True
        reason = " ".join(str(error).split())[:300]
        rank_zero_warn(
            f"compile=blocks: torch cannot compile, the blocks run uncompiled from here on "
            f"(model.policy.compile: null spares the attempt): {reason}"
        )
