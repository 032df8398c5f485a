"""Bytes of tensors: in memory, by shape, and pinned."""

from __future__ import annotations

import pytest
import torch

from guardlit.devices.storage import bytes_of, pinned_bytes, size_of


def test_shared_storage_counts_once():
    x = torch.zeros(10, 4)
    assert bytes_of([x, x.view(40), x.T]) == 160
    assert bytes_of([x, x.clone()]) == 320
    assert size_of([x, x]) == 320


def test_a_dtype_replaces_that_of_floating_point_tensors():
    tensors = [torch.zeros(10), torch.zeros(10, dtype=torch.float64), torch.zeros(10, dtype=torch.int64)]
    assert size_of(tensors) == 40 + 80 + 80
    assert size_of(tensors, torch.bfloat16) == 20 + 20 + 80
    assert size_of((torch.zeros(3, device="meta") for _ in range(2)), torch.float16) == 12


@pytest.mark.parametrize(("size", "pinned"), [(1, 1), (2, 2), (3, 4), (4096, 4096), (4097, 8192)])
def test_pinned_memory_is_a_power_of_two(size: int, pinned: int):
    assert pinned_bytes(size) == pinned
