"""Checks that the simulated device behaves like CUDA: each function asserts one thing, in a process with the device."""

from __future__ import annotations

import contextlib
import copy
import io
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from forked import CONTEXT
from synchronizations import RECORD
from torch import Tensor, nn
from torch.nn import functional

HERE = "cuda:0"


def waits_of(action: Callable[[], object]) -> list[str]:
    """The kinds of synchronization that an action causes."""
    before = RECORD.waits.copy()
    action()
    return [place.kind for place in (RECORD.waits - before).elements()]


def tensors_of_two_devices_do_not_mix() -> None:
    here, cpu = torch.ones(2, 3, device=HERE), torch.ones(2, 3)
    for mix in (
        lambda: here + cpu,
        lambda: cpu + here,
        lambda: torch.cat([here, cpu]),
        lambda: torch.stack([here[0, 0], cpu[0, 0]]),
        lambda: here @ cpu.T,
        lambda: torch.where(here > 0, here, cpu),
        lambda: functional.linear(cpu, here),
        lambda: functional.scaled_dot_product_attention(here[None], cpu[None], here[None]),
        lambda: functional.embedding(torch.tensor([0]), here),
        lambda: here.index_select(0, torch.tensor([0])),
        lambda: here.add_(cpu),
        lambda: cpu.add_(here),
        lambda: cpu[torch.tensor([0], device=HERE)],
        lambda: nn.LayerNorm(3)(here),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mix()


def nondeterministic_operations_are_refused_on_request() -> None:
    here = torch.ones(2, 2, 4, 4, device=HERE, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        for forbidden in (False, True):
            torch.use_deterministic_algorithms(forbidden)
            for action in (
                lambda: functional.interpolate(here, scale_factor=2, mode="bilinear").sum().backward(),
                lambda: here.detach().median(dim=0),
                lambda: torch.bincount(torch.ones(2, dtype=torch.long, device=HERE), torch.ones(2, device=HERE)),
                lambda: here @ here,
            ):
                with pytest.raises(RuntimeError) if forbidden else contextlib.nullcontext():
                    action()
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        here @ here
        here.detach().median()
        functional.interpolate(here, scale_factor=2, mode="nearest").sum().backward()
        torch.use_deterministic_algorithms(False)


def data_may_move_to_the_cpu_and_return() -> None:
    parameter, here = nn.Parameter(torch.ones(2, 2, device=HERE), requires_grad=False), torch.ones(1, 2, device=HERE)
    parameter.data = parameter.data.to("cpu")
    assert parameter.device.type == "cpu"
    assert (parameter * torch.ones(2)).device.type == "cpu"
    with pytest.raises(RuntimeError, match="same device"):
        functional.linear(here, parameter)
    parameter.data = parameter.data.to(HERE)
    assert functional.linear(here, parameter).tolist() == [[2, 2]]


def numbers_and_indices_of_the_cpu_pass() -> None:
    here = torch.ones(2, 3, device=HERE)
    assert (here * torch.tensor(2.0)).device == torch.device(HERE)
    assert torch.equal((here + 1 - torch.tensor(1)).cpu(), torch.ones(2, 3))
    assert here[torch.tensor([1, 0])].shape == (2, 3)
    here[0] = torch.tensor(5.0)
    here[:, 1] = 7
    assert here.tolist() == [[5, 7, 5], [1, 7, 1]]


def generators_belong_to_a_device() -> None:
    with pytest.raises(RuntimeError, match="'cuda' device type for generator"):
        torch.randn(2, device=HERE, generator=torch.Generator())
    draws = [torch.randn(2, device=HERE, generator=torch.Generator("cuda").manual_seed(3)).cpu() for _ in range(2)]
    assert torch.equal(*draws)
    torch.manual_seed(3)
    here = torch.randn(4, device=HERE).cpu()
    torch.manual_seed(3)
    assert not torch.equal(here, torch.randn(4))  # the device's stream is not the CPU's
    torch.manual_seed(3)
    assert torch.equal(here, torch.randn(4, device=HERE).cpu())


def it_computes_what_the_cpu_does() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    twin, x = copy.deepcopy(block), torch.randn(2, 5, 8)
    there = copy.deepcopy(block).to(HERE)
    optimizers = [torch.optim.SGD(module.parameters(), 0.01, momentum=0.9) for module in (twin, there)]
    for _ in range(2):
        for module, optimizer, input in zip((twin, there), optimizers, (x, x.to(HERE)), strict=True):
            optimizer.zero_grad()
            module(input).square().sum().backward()
            optimizer.step()
    for ours, theirs in zip(there.parameters(), twin.parameters(), strict=True):
        assert ours.is_cuda
        torch.testing.assert_close(ours.detach().cpu(), theirs.detach(), rtol=1e-5, atol=1e-6)


def complex_gradients_are_right() -> None:
    torch.manual_seed(0)
    gradients = []
    x, turn = torch.randn(3, 4, 2), torch.polar(torch.ones(4), torch.rand(4))
    for device in ("cpu", HERE):
        leaf = x.clone().to(device).requires_grad_()
        torch.view_as_real(torch.view_as_complex(leaf) * turn.to(device)).select(-1, 0).sum().backward()
        gradients.append(leaf.grad.cpu())
    assert torch.equal(*gradients)


def autocast_is_that_of_cuda() -> None:
    layer, x = nn.Linear(4, 4).to(HERE), torch.randn(2, 4, device=HERE)
    with torch.autocast("cuda", torch.float16):
        assert layer(x).dtype == (x @ x.T).dtype == torch.float16
        assert layer(x).softmax(-1).dtype == functional.layer_norm(layer(x), (4,)).dtype == torch.float32
        assert torch.cat([x, x.half()]).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert layer(x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32
    scaler = torch.amp.GradScaler("cuda", init_scale=8.0)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    with torch.autocast("cuda", torch.float16):
        loss = layer(x).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 8.0


def parameters_keep_their_identity_when_they_move() -> None:
    module = nn.Linear(2, 2)
    weight = module.weight
    for device in ("cuda", "cuda:0", "cpu"):
        module.to(device)
        assert module.weight is weight
        assert isinstance(weight, nn.Parameter)
        assert weight.device.type == torch.device(device).type
        assert weight.is_leaf
    with torch.device("cuda"):
        assert nn.Linear(2, 2).weight.is_cuda
    weight.data = torch.ones(2, 2)
    assert weight.sum() == 4


def synchronizations_are_recorded() -> None:
    here = torch.arange(4.0, device=HERE)
    cpu = torch.ones(4)
    assert waits_of(lambda: float(here[0])) == ["a number read"]
    assert waits_of(lambda: bool((here > 5).any())) == ["a number read"]
    assert waits_of(lambda: here[here > 1]) == ["boolean index"]
    assert waits_of(lambda: here.nonzero()) == ["nonzero"]
    assert waits_of(lambda: here.cpu()) == ["copy to the host"]
    assert waits_of(lambda: cpu.copy_(here)) == ["copy to the host"]
    assert waits_of(lambda: cpu.to(HERE)) == ["copy to the device"]
    assert waits_of(lambda: torch.tensor([1.0], device=HERE)) == ["copy to the device"]
    assert waits_of(lambda: here[torch.tensor([0])]) == ["copy to the device"]
    assert waits_of(lambda: torch.cuda.synchronize()) == ["torch.cuda.synchronize"]
    assert waits_of(lambda: (here * 2 + 1).clone().sum()) == []
    assert waits_of(lambda: torch.zeros(3, device=HERE)) == []
    assert waits_of(lambda: here[1:3].to(torch.float64)) == []


def only_pinned_memory_is_copied_asynchronously() -> None:
    here, pageable = torch.zeros(4, device=HERE), torch.ones(4)
    assert waits_of(lambda: pageable.to(HERE, non_blocking=True)) == ["copy to the device"]
    for pinned in (pageable.pin_memory(), torch.empty(4, pin_memory=True)):
        assert pinned.is_pinned()
        assert pinned[1:].is_pinned()  # a view of pinned memory is pinned
        assert waits_of(lambda pinned=pinned: pinned.to(HERE, non_blocking=True)) == []
        assert waits_of(lambda pinned=pinned: pinned.to(HERE)) == ["copy to the device"]
        assert waits_of(lambda pinned=pinned: pinned.copy_(here, non_blocking=True)) == []
    assert not pageable.is_pinned()
    assert waits_of(lambda: pageable.copy_(here, non_blocking=True)) == ["copy to the host"]
    with pytest.raises(RuntimeError, match="cannot pin"):
        here.pin_memory()


def other_threads_see_it_too() -> None:
    seen: list[Tensor] = []
    thread = threading.Thread(target=lambda: seen.append(torch.zeros(2, device=HERE) + float(torch.ones(1).to(HERE))))
    before = RECORD.waits.copy()
    thread.start()
    thread.join()
    assert seen[0].is_cuda
    assert {place.loop for place in RECORD.waits - before} == {"thread"}


def it_is_saved_and_copied() -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.ones(2, device=HERE), "module": nn.Linear(2, 2).to(HERE).state_dict()}, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True)["weight"], torch.ones(2))
    twin = copy.deepcopy(nn.Linear(2, 2).to(HERE))
    assert twin.weight.is_cuda
    assert isinstance(twin.weight, nn.Parameter)
    for leave in (lambda: torch.ones(2, device=HERE).numpy(), lambda: numpy.asarray(torch.ones(2, device=HERE))):
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            leave()


CHECKS = {
    check.__name__: check
    for check in (
        tensors_of_two_devices_do_not_mix,
        nondeterministic_operations_are_refused_on_request,
        data_may_move_to_the_cpu_and_return,
        numbers_and_indices_of_the_cpu_pass,
        generators_belong_to_a_device,
        it_computes_what_the_cpu_does,
        complex_gradients_are_right,
        autocast_is_that_of_cuda,
        parameters_keep_their_identity_when_they_move,
        synchronizations_are_recorded,
        only_pinned_memory_is_copied_asynchronously,
        other_threads_see_it_too,
        it_is_saved_and_copied,
    )
}


def check(folder: Path) -> dict[str, str]:
    """Run all checks in one process; returns each one's traceback, empty where it passed."""
    process = CONTEXT.Process(target=_check, args=(str(folder),), daemon=True)
    process.start()
    process.join(120)
    return {name: (folder / name).read_text() if (folder / name).exists() else "not run" for name in CHECKS}


def _check(folder: str) -> None:
    from pretend_cuda import install

    torch.set_num_threads(1)
    install()
    for name, function in CHECKS.items():
        failure = ""
        try:
            function()
        except BaseException:
            failure = traceback.format_exc()
        (Path(folder) / name).write_text(failure)
