"""Tensors of a simulated GPU: they report cuda:0, compute on the CPU, and refuse to mix with CPU tensors as CUDA does.

The numbers are real, so complete runs work: control flow that depends on data, checkpoints, resumes. Below autograd
every operation runs on the CPU tensor behind a `DeviceTensor`. PyTorch's C++ would query a driver about a tensor on
cuda:0. To C++ the tensor therefore lies on `CARRIER`, a device that nothing else uses; Python sees cuda:0, and
`pretend_cuda.Functions` translates arguments. This cannot show kernels, memory or the order of streams.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from deterministic import refuse
from synchronizations import RECORD
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
DEVICE, CARRIER = torch.device("cuda:0"), torch.device("lazy:0")

WAITS = {  # the host needs the result before it continues
    aten._local_scalar_dense: "a number read",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten.equal: "equal",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique",
    aten.bincount: "bincount",
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
COPIES = {aten._to_copy, aten.copy_, aten._foreach_copy_}
NO_CPU_SCALARS = {aten.cat, aten.stack, aten.gather, aten.index_select, aten.embedding, aten.scatter}
"""Operations that need all tensors on the device; elsewhere a CPU tensor without dimensions passes as a number."""


class DeviceGenerator(torch.Generator):
    """A random generator of the device; its numbers differ from the CPU's at the same seed."""

    device = DEVICE  # type: ignore[assignment]

    def __init__(self, device: object = DEVICE) -> None:
        _GENERATORS[self._cdata] = self  # PyTorch passes it on as another object of the same address

    def manual_seed(self, seed: int) -> DeviceGenerator:  # type: ignore[override]
        """Seed it."""
        super().manual_seed(seed ^ 0x5EED)
        return self


_GENERATORS: dict[int, DeviceGenerator] = {}
GENERATOR = DeviceGenerator()
"""The device's default generator."""
_PINNED: set[int] = set()  # addresses of memory that counts as pinned


def pin(tensor: Tensor) -> Tensor:
    """Mark a CPU tensor's memory as pinned for its lifetime."""
    storage = tensor.untyped_storage()
    if storage.data_ptr() and storage.data_ptr() not in _PINNED:
        _PINNED.add(storage.data_ptr())
        weakref.finalize(storage, _PINNED.discard, storage.data_ptr())
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    """Whether a tensor lies in pinned memory; an empty one needs none."""
    return not isinstance(tensor, DeviceTensor) and tensor.untyped_storage().data_ptr() in _PINNED


class DeviceTensor(Tensor):
    """A tensor on the simulated device.

    Args:
        data: the CPU tensor that holds its numbers.
        requires_grad: given where a library rebuilds a parameter by its type; the result is then a parameter.
        attributes: of the rebuilt parameter.
    """

    host: Tensor
    away = False
    """Whether it is on the CPU: its `data` was set to a CPU tensor."""
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data: Tensor, requires_grad: bool | None = None, **attributes: object) -> DeviceTensor:
        if requires_grad is not None:
            return nn.Parameter(data, requires_grad)
        self = Tensor._make_subclass(cls, _shell(data), False, dispatch_device=True, device_for_backend_keys=DEVICE)
        self.host = data
        return self

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return execute(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """cuda:0, or the CPU while it is away."""
        return torch.device("cpu") if self.away else DEVICE

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """Whether it is on the device."""
        return not self.away

    def get_device(self) -> int:
        """Its number."""
        return 0

    @property
    def data(self) -> Tensor:
        """The tensor without its history."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        self.away = not isinstance(value, DeviceTensor)
        arrived = DeviceTensor(value) if self.away else value
        self.host = arrived.host
        Tensor.data.__set__(self, arrived)

    def tolist(self) -> list:
        """Its numbers; the host synchronizes."""
        RECORD.note("a number read")
        return self.host.tolist()

    def numpy(self, **options: object) -> None:
        """Refused, as by CUDA."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def __reduce_ex__(self, protocol: int) -> object:
        RECORD.note("copy to the host")
        return self.host.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> Tensor:
        new = DeviceTensor(self.host.clone())
        memo[id(self)] = new = nn.Parameter(new, self.requires_grad) if isinstance(self, nn.Parameter) else new
        return new

    def __repr__(self) -> str:
        return f"DeviceTensor({self.host!r})"

    def untyped_storage(self) -> torch.UntypedStorage:
        """Storage of the numbers, so that shared memory is found."""
        return self.host.untyped_storage()

    def data_ptr(self) -> int:
        """Address of the numbers."""
        return self.host.data_ptr()

    def pin_memory(self) -> None:
        """Refused, as by CUDA."""
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def record_stream(self, stream: object) -> None:
        """Do nothing: memory here is not released early."""


def _shell(host: Tensor) -> Tensor:
    return torch.empty_strided(host.shape, host.stride(), dtype=host.dtype, device="meta")


class OnDevice(TorchDispatchMode):
    """Intercepts operations that create device tensors; modes hold for one thread."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return execute(func, args, kwargs or {})


def execute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation: on the CPU without device tensors, otherwise checked, recorded and run on the host tensors."""
    if func is torch.ops.prim.device.default:
        return CARRIER
    args, kwargs = tree_map(_not_away, list(args)), tree_map(_not_away, dict(kwargs))
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    options = dict(kwargs)
    if pinned := options.pop("pin_memory", None):
        assert not ours
        return pin(func(*args, **options))
    arrives = target is not None and target == CARRIER
    if not ours and not arrives:
        return func(*args, **kwargs)
    packet = func.overloadpacket
    cpu = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
    refuse(func, args, options)
    if ours:
        _check_mixed(packet, args, cpu)
    _note(packet, args, options, ours, cpu, target)
    if arrives:
        options["device"] = torch.device("cpu")
    elif pinned is not None:
        options["pin_memory"] = False
    with _drawing(func, args, options):
        result = func(*tree_map(_host, list(args)), **tree_map(_host, options))
    return _returned(func, args, kwargs, result, leaves=target is not None and not arrives)


def _not_away(leaf: object) -> object:
    return leaf.host if isinstance(leaf, DeviceTensor) and leaf.away else leaf


def _host(leaf: object) -> object:
    return leaf.host if isinstance(leaf, DeviceTensor) else leaf


def _returned(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, leaves: bool) -> Any:
    """The result as a device tensor, unless it leaves the device; an in-place operation returns its argument."""
    returns = func._schema.returns
    if len(returns) == 1 and returns[0].alias_info is not None and returns[0].alias_info.is_write:
        named = {arg.name: value for arg, value in zip(func._schema.arguments, args, strict=False)} | dict(kwargs)
        memory = returns[0].alias_info.before_set
        (itself,) = (
            named[arg.name]
            for arg in func._schema.arguments
            if arg.alias_info is not None and arg.alias_info.before_set == memory
        )
        if isinstance(itself, DeviceTensor) and itself.shape != itself.host.shape:
            raise NotImplementedError(f"{func} changes a shape in place, which the simulated device cannot")
        return itself
    return result if leaves else tree_map(_arrived, result)


def _arrived(leaf: object) -> object:
    """A device tensor without pending conjugation or negation, which its shell would not show."""
    return DeviceTensor(leaf.resolve_conj().resolve_neg()) if isinstance(leaf, Tensor) else leaf


def _check_mixed(packet: Any, args: Sequence[Any], cpu: Sequence[Tensor]) -> None:
    """Raise as CUDA does for CPU tensors, except for copies, CPU numbers and CPU indices."""
    if packet in COPIES:
        return
    others: Iterable[Tensor] = cpu
    if packet in INDEXING and isinstance(args[0], DeviceTensor):
        indices = [i for i in args[1] if isinstance(i, Tensor)]
        others = [tensor for tensor in cpu if not any(tensor is index for index in indices)]
    bad = [tensor for tensor in others if tensor.ndim or packet in NO_CPU_SCALARS]
    if bad:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu! "
            f"({packet}, the CPU's is of shape {tuple(bad[0].shape)})"
        )


def _given_generator(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Generator | None:
    names = [argument.name for argument in func._schema.arguments]
    place = names.index("generator") if "generator" in names else len(names)
    return args[place] if place < len(args) else kwargs.get("generator")


@contextmanager
def _drawing(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Refuse a CPU generator for device numbers; without a generator, use the device's."""
    given = _given_generator(func, args, kwargs)
    if given is not None and given._cdata not in _GENERATORS:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if given is not None or torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(GENERATOR.get_state())
    try:
        yield
    finally:
        GENERATOR.set_state(torch.default_generator.get_state())
        torch.default_generator.set_state(before)


def _note(
    packet: Any,
    args: Sequence[Any],
    options: Mapping[str, Any],
    ours: Sequence[Tensor],
    cpu: Sequence[Tensor],
    target: torch.device | None,
) -> None:
    """Record the operation if the host waits for the device."""
    if packet in COPIES:
        _note_copy(packet, args, options, target)
    elif packet in WAITS:
        RECORD.note(WAITS[packet])
    elif packet is aten.repeat_interleave and options.get("output_size") is None:
        RECORD.note("repeat_interleave")
    elif packet in INDEXING:
        indices = [i for i in args[1] if isinstance(i, Tensor)]
        if any(i.dtype in (torch.bool, torch.uint8) for i in indices):
            RECORD.note("boolean index")
        if any(not isinstance(i, DeviceTensor) for i in indices):
            RECORD.note("copy to the device")


def _note_copy(packet: Any, args: Sequence[Any], options: Mapping[str, Any], target: torch.device | None) -> None:
    """A copy between host and device waits unless it is non-blocking and the host's side is pinned memory.

    CUDA Runtime API, "API synchronization behavior"; PyTorch's copy kernel. `.to("cpu", non_blocking=True)` allocates
    pinned memory.
    """
    if packet is aten._foreach_copy_:
        pairs = list(zip(args[0], args[1], strict=True))
        non_blocking = args[2] if len(args) > 2 else options.get("non_blocking")
    elif packet is aten.copy_:
        pairs = [(args[0], args[1])]
        non_blocking = args[2] if len(args) > 2 else options.get("non_blocking")
    else:
        pairs, non_blocking = [(None, args[0])], options.get("non_blocking")
    for to, source in pairs:
        from_device = isinstance(source, DeviceTensor)
        to_device = isinstance(to, DeviceTensor) or (to is None and (target == CARRIER if target else from_device))
        if from_device == to_device:
            continue
        here = source if to_device else to
        if not (non_blocking and (here is None or is_pinned(here))):
            RECORD.note("copy to the device" if to_device else "copy to the host")
