"""The frozen base in 4 or 8 bits, loaded through diffusers' quantization backends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional

from guardlit.devices.storage import bytes_of, is_wrapper
from guardlit.errors import GuardlitError
from guardlit.policies.folders.components import load_component

Kind = Literal["nf4", "int8", "fp8"]
LIBRARIES: dict[str, str] = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}
BLOCK, OUTER = 64, 256
"""Weights per scale in nf4, and scales per second-level scale (QLoRA's double quantization)."""


def check_quantization(kind: str | None, lora: object | None) -> None:
    """Refuse a quantization that no policy can have; arguments as for `DiffusersPolicy`.

    Raises:
        GuardlitError: an unknown kind, or weights that train.
    """
    if kind is None:
        return
    if kind not in LIBRARIES:
        raise GuardlitError(f"quantization={kind} is not known; write {', '.join(get_args(Kind))} or null")
    if lora is None:
        raise GuardlitError(
            f"quantization={kind} is for weights that do not train, and lora: null trains them all; set lora, or "
            "quantization: null"
        )


def check_unsharded(kind: str | None, sharded: bool) -> None:
    """Refuse to shard quantized weights; raises `GuardlitError`."""
    if kind is not None and sharded:
        raise GuardlitError(
            f"quantization={kind} does not work with trainer.strategy=fsdp, which cannot cut quantized weights; take "
            "trainer.strategy=ddp, or quantization: null"
        )


def load_quantized(loader: Any, folder: Path, component: str, dtype: torch.dtype, kind: Kind) -> Any:
    """`load_component` that quantizes each linear layer while reading; the folder holds unquantized weights.

    Args:
        loader: the component's class in diffusers.
        folder: of the pipeline.
        component: its subfolder.
        dtype: of unquantized weights, and of matrix products.
        kind: `nf4` (bitsandbytes, with double quantization), `int8` or `fp8` (torchao, a scale a row).

    Returns:
        The component with `QuantizedLinear` for linear layers, except for those that its class keeps in float32.

    Raises:
        GuardlitError: a missing library, or as `load_component`.
    """
    library = LIBRARIES[kind]
    if find_spec(library) is None:
        raise GuardlitError(f"quantization={kind} needs {library}: pip install 'guardlit[quant]'")
    backend = _nf4_anywhere() if kind == "nf4" else nullcontext()
    with backend, _without_warnings():
        config = _config(kind, dtype)
        model = load_component(loader, folder, component, dtype=dtype, quantization_config=config)
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and _is_quantized(layer.weight):
            _take_over(layer, kind)
    return model


def quantize_skeleton(transformer: nn.Module, kind: Kind) -> nn.Module:
    """Give a component on the meta device the layers of `load_quantized`, with full weights in place of codes."""
    full = set(getattr(transformer, "_keep_in_fp32_modules", None) or ())
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and not full & set(name.split(".")):
            _take_over(layer, kind)
    return transformer


def weight_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters; for a skeleton, of the loaded network's."""
    layers = [m for m in network.modules() if isinstance(m, QuantizedLinear) and m.weight.is_meta]
    counted = {id(layer.weight) for layer in layers}
    others = (p for p in network.parameters() if id(p) not in counted)
    return sum(_quantized_bytes(layer) for layer in layers) + bytes_of(others)


def _quantized_bytes(layer: QuantizedLinear) -> int:
    rows, columns = layer.weight.shape
    if layer.kind == "int8":
        return rows * columns + 5 * rows  # a float32 scale and an int8 zero point
    if layer.kind == "fp8":
        return rows * columns + 4 * rows
    blocks = math.ceil(rows * columns / BLOCK)
    tables = 4 * (16 + 256 + 1)  # float32 values of the codes, of the scales' codes, and the scales' mean
    return math.ceil(rows * columns / 2) + blocks + 4 * math.ceil(blocks / OUTER) + tables


# computing ------------------------------------------------------------------------------------------------------------


class QuantizedLinear(nn.Linear):
    """A frozen linear layer that dequantizes its weight for each matrix product, in both passes, and keeps no copy.

    All kinds work alike; torchao's own layers save a dequantized copy of every weight for the backward pass. Products
    are computed in the input's precision, or autocast's.
    """

    kind: Kind

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        device = input.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        product: Tensor = _Product.apply(input, self.weight, getattr(self.weight, "quant_state", None), self.bias)
        return product


class _Product(torch.autograd.Function):
    """`linear` with a weight that is dequantized in each of the two passes."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, state: Any, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.state = state
        return functional.linear(
            input, _full(weight, state, input.dtype), None if bias is None else bias.to(input.dtype)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        (weight,) = ctx.saved_tensors
        return gradient @ _full(weight, ctx.state, gradient.dtype), None, None, None


def _full(weight: Any, state: Any, dtype: torch.dtype) -> Tensor:
    """The dequantized weight, (out, in), in a dtype."""
    if weight.is_meta:
        return torch.empty(weight.shape, dtype=dtype, device="meta")
    if state is None:
        values: Tensor = weight.dequantize()
    else:
        from bitsandbytes.functional import dequantize_4bit

        values = dequantize_4bit(weight, state)
    return values.to(dtype)


def _take_over(layer: nn.Linear, kind: Kind) -> None:
    layer.__class__ = QuantizedLinear  # parameter names stay, and peft still sees a linear layer
    layer.kind = kind  # type: ignore[assignment]
    layer.weight.requires_grad_(False)


def _is_quantized(weight: Tensor) -> bool:
    return is_wrapper(weight) or getattr(weight, "quant_state", None) is not None


# diffusers' backends --------------------------------------------------------------------------------------------------


def _config(kind: Kind, dtype: torch.dtype) -> Any:
    from diffusers import BitsAndBytesConfig, TorchAoConfig

    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    scheme = Int8WeightOnlyConfig if kind == "int8" else Float8WeightOnlyConfig
    return TorchAoConfig(scheme(set_inductor_config=False))  # torch.compile's settings belong to the user


def _nf4_anywhere() -> AbstractContextManager[Any]:
    """Let diffusers use bitsandbytes without a GPU, which diffusers requires and bitsandbytes does not."""
    if torch.cuda.is_available():
        return nullcontext()
    from diffusers.quantizers import auto
    from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer

    class Anywhere(BnB4BitDiffusersQuantizer):  # type: ignore[misc]
        def validate_environment(self, *args: Any, **kwargs: Any) -> None:
            return

        def update_device_map(self, device_map: Any) -> Any:
            return device_map

    return patch.dict(auto.AUTO_QUANTIZER_MAPPING, {"bitsandbytes_4bit": Anywhere})


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide diffusers' warning that torchao computes in bfloat16 only: products here are not torchao's."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
