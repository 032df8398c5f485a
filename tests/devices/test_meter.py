"""The meter of operations and memory: the meta device against the CPU, formulas, and Lightning's `measure_flops`."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric.utilities.throughput import measure_flops
from torch import nn
from torch.utils.checkpoint import checkpoint

from guardlit.devices.meter import backward, measured


def _layers(device: str) -> tuple[nn.ModuleList, torch.Tensor]:
    with torch.device(device):
        layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(6))
        return layers, torch.zeros(100, 64, requires_grad=True)


def _train(layers: nn.ModuleList, x: torch.Tensor, recompute: bool) -> None:
    h = x
    for layer in layers:
        h = checkpoint(layer, h, use_reentrant=False) if recompute else layer(h)
    backward(h.sum())


@pytest.mark.parametrize("recompute", [False, True])
def test_the_meta_device_costs_the_same_as_the_cpu(recompute: bool):
    costs = []
    for device in ("cpu", "meta"):
        layers, x = _layers(device)
        with measured() as cost:
            _train(layers, x, recompute)
        costs.append(cost)
    assert costs[0] == costs[1]


def test_operations_and_saved_activations_match_formulas():
    layers, x = _layers("meta")
    product = 2 * 100 * 64 * 256
    with measured() as plain:
        _train(layers, x, recompute=False)
    assert plain.flops == 6 * 2 * product * 3  # forward, and towards inputs and weights
    layers, x = _layers("meta")
    with measured() as recomputed:
        _train(layers, x, recompute=True)
    assert recomputed.flops == 6 * product * (2 * 3 + 1)  # torch skips a layer's last product, which no gradient needs
    kept = 6 * 2 * 100 * 256 * 4  # before and after each GELU
    assert kept < plain.peak < kept + 6 * 2 * 64 * 256 * 4 + 8 * 100 * 256 * 4  # plus gradients and a few more
    assert recomputed.peak < 0.75 * plain.peak


def test_attention_is_fused_and_counts_twice_in_the_backward_pass():
    q, k, v = (torch.empty(2, 4, 100, 16, device="meta", requires_grad=True) for _ in range(3))
    scores = 2 * 4 * 100 * 100 * 4
    with measured() as forward:
        out = nn.functional.scaled_dot_product_attention(q, k, v).sum()
    assert forward.flops == 2 * 2 * 2 * 4 * 100 * 100 * 16
    assert forward.peak < scores  # never stored
    with measured() as back:
        backward(out)
    assert back.flops == 2 * forward.flops


def test_half_precision_keeps_copies_of_frozen_weights_until_the_backward_pass():
    x = torch.empty(4, 256, device="meta", requires_grad=True)
    layer = nn.Linear(256, 256, device="meta").requires_grad_(False)
    with measured(torch.float16) as half:
        out = layer(x)
    assert out.dtype == torch.float16
    assert half.peak >= 256 * 256 * 2


class _Attention(nn.Module):
    """Projections, attention and an output, recomputed in the backward pass or not."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.recompute = nn.Linear(32, 96), nn.Linear(32, 32), recompute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self._attend, x, use_reentrant=False) if self.recompute else self._attend(x)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("recompute", [False, True])
def test_operations_equal_those_of_lightnings_measure_flops(recompute: bool):
    with torch.device("meta"):
        layer, x = _Attention(recompute), torch.empty(2, 50, 32, requires_grad=True)
    with measured() as forward:
        layer(x)
    with measured() as both:
        backward(layer(x).sum())
    assert forward.flops == measure_flops(layer, lambda: layer(x)) > 0
    assert both.flops == measure_flops(layer, lambda: layer(x), torch.sum) > 2 * forward.flops
