"""`torch.cuda` of the simulated device, for the rest of the process's life; call `install` in a separate process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from pretend_autocast import pretend_autocast
from pretend_tensor import CARRIER, DEVICE, GENERATOR, DeviceGenerator, DeviceTensor, OnDevice, is_pinned, pin
from synchronizations import RECORD
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

MEMORY = 80 * 2**30
PROPERTIES = SimpleNamespace(
    name="pretended", major=9, minor=0, total_memory=MEMORY, multi_processor_count=132, uuid="0", gcnArchName=""
)


class Event:
    """Has always happened; waiting for it is recorded."""

    def __init__(self, *args: object, **options: object) -> None: ...

    def record(self, stream: object = None) -> None: ...

    def wait(self, stream: object = None) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Event) -> float:
        return 0.0

    def synchronize(self) -> None:
        RECORD.note("event.synchronize")


class Stream:
    """The only stream."""

    cuda_stream, device = 0, DEVICE

    def __init__(self, *args: object, **options: object) -> None: ...

    def wait_stream(self, stream: Stream) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def synchronize(self) -> None:
        RECORD.note("stream.synchronize")


class Generator(torch.Generator):
    """`torch.Generator(device)` for either device."""

    def __new__(cls, device: object = "cpu") -> torch.Generator:
        return DeviceGenerator() if torch.device(device).type == "cuda" else super().__new__(cls)

    def __init__(self, device: object = "cpu") -> None: ...


def _seed(seed: int) -> None:
    GENERATOR.manual_seed(int(seed))


CUDA: dict[str, Any] = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "_lazy_init": lambda: None,
    "_is_in_bad_fork": lambda: False,
    "device_count": lambda: 1,
    "_device_count_nvml": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "synchronize": lambda device=None: RECORD.note("torch.cuda.synchronize"),
    "empty_cache": lambda: None,
    "ipc_collect": lambda: None,
    "get_device_capability": lambda device=None: (9, 0),
    "get_device_properties": lambda device=None: PROPERTIES,
    "get_device_name": lambda device=None: PROPERTIES.name,
    "is_bf16_supported": lambda *args, **options: True,
    "current_stream": lambda device=None: Stream(),
    "default_stream": lambda device=None: Stream(),
    "stream": lambda stream: contextlib.nullcontext(stream),
    "set_stream": lambda stream: None,
    "is_current_stream_capturing": lambda: False,
    "Event": Event,
    "Stream": Stream,
    "memory_allocated": lambda device=None: 0,
    "memory_reserved": lambda device=None: 0,
    "max_memory_allocated": lambda device=None: 0,
    "max_memory_reserved": lambda device=None: 0,
    "reset_peak_memory_stats": lambda device=None: None,
    "memory_stats": lambda device=None: {},
    "mem_get_info": lambda device=None: (MEMORY, MEMORY),
    "manual_seed": _seed,
    "manual_seed_all": _seed,
    "get_rng_state": lambda device=None: GENERATOR.get_state(),
    "set_rng_state": lambda state, device=None: GENERATOR.set_state(state),
    "get_rng_state_all": lambda: [GENERATOR.get_state()],
    "set_rng_state_all": lambda states: GENERATOR.set_state(states[0]),
}


class _OnHost(torch.autograd.Function):
    """A function whose kernel choice would query the driver, computed on the CPU with its gradient."""

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        hosts = [None if t is None else t.host.detach() for t in tensors]
        with torch.inference_mode(False), torch.enable_grad():
            ctx.inputs = [
                h.clone() if h is not None and h.is_inference() else h for h in hosts
            ]  # inference tensors cannot be differentiated
            ctx.inputs = [
                h.detach().requires_grad_(t.requires_grad) if h is not None and h.is_floating_point() else h
                for h, t in zip(ctx.inputs, tensors, strict=True)
            ]
            ctx.out = call(*ctx.inputs)
        return DeviceTensor(ctx.out.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [k for k, h in enumerate(ctx.inputs) if h is not None and h.requires_grad]
        found = torch.autograd.grad(ctx.out, [ctx.inputs[k] for k in wanted], gradient.host)
        gradients: list[Tensor | None] = [None] * len(ctx.inputs)
        for k, value in zip(wanted, found, strict=True):
            gradients[k] = DeviceTensor(value)
        return None, *gradients


def _attention(query, key, value, attn_mask=None, *args, **options):
    tensors = [query, key, value, attn_mask]
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        tensors = [t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors]
    _on_one_device("scaled_dot_product_attention", tensors)
    return _OnHost.apply(lambda *hosts: functional.scaled_dot_product_attention(*hosts, *args, **options), *tensors)


def _rms_norm(input, normalized_shape, weight=None, eps=None):
    _on_one_device("rms_norm", [input, weight])
    return _OnHost.apply(lambda x, w: torch.rms_norm(x, normalized_shape, w, eps), input, weight)


def _on_one_device(name: str, tensors: list[Tensor | None]) -> None:
    if any(t is not None and not isinstance(t, DeviceTensor) for t in tensors):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {DEVICE} and cpu! ({name})")


class Functions(TorchFunctionMode):
    """Translates devices for PyTorch's C++, and intercepts queries of the driver; modes hold for one thread."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in ON_HOST and args and isinstance(args[0], DeviceTensor):
            return ON_HOST[func](*args, **(kwargs or {}))
        if func is torch.Tensor.pin_memory:
            return pin(args[0].clone())
        if func is torch.Tensor.is_pinned:
            return is_pinned(args[0])
        if func is torch.Tensor.new_tensor and isinstance(args[0], DeviceTensor):
            return torch.tensor(args[1], **{"dtype": args[0].dtype, "device": CARRIER, **(kwargs or {})})
        if func in (torch.device, torch._C._nn._parse_to):  # they define devices
            return func(*args, **(kwargs or {}))
        return func(*map(_carried, args), **{name: _carried(value) for name, value in (kwargs or {}).items()})


ON_HOST = {
    functional.scaled_dot_product_attention: _attention,
    torch.rms_norm: _rms_norm,
    functional.rms_norm: _rms_norm,
}


def _carried(argument: object) -> object:
    if isinstance(argument, str | torch.device) and str(argument) in ("cuda", "cuda:0"):
        return CARRIER
    return argument


def _swap(one: Tensor, other: Tensor) -> None:
    """`torch.utils.swap_tensors` that allows other references, as a move on a real device does."""
    if one.data_ptr() != other.data_ptr() or one.dtype != other.dtype:
        one.__class__, other.__class__ = other.__class__, one.__class__
        one.__dict__, other.__dict__ = other.__dict__, one.__dict__
        torch._C._swap_tensor_impl(one, other)


def _in_threads() -> None:
    """Set the thread-local modes in every new thread."""
    run = threading.Thread.run

    def on_device(self: threading.Thread) -> None:
        torch.autograd.set_multithreading_enabled(False)
        with OnDevice(), Functions():
            run(self)

    threading.Thread.run = on_device  # type: ignore[method-assign]


def install() -> None:
    """Give this process a GPU."""
    import torch.cuda.amp.common

    torch._C._set_only_lift_cpu_tensors(True)  # so that `torch.tensor(..., device)` is a recorded copy
    for name, value in CUDA.items():
        setattr(torch.cuda, name, value)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    pretend_autocast()
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
    torch.accelerator.current_stream = torch.cuda.current_stream
    torch.accelerator.current_device_index = torch.cuda.current_device
    torch.accelerator.synchronize = torch.cuda.synchronize
    torch.Generator = Generator  # type: ignore[misc]
    torch.autograd.set_multithreading_enabled(False)
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters keep their identity when they move
    torch.utils.swap_tensors = _swap
    _in_threads()
    OnDevice().__enter__()
    Functions().__enter__()
