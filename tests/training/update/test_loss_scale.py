"""float16 gradients under a long accumulation; a CPU has the scaler, and float16 that underflows as a GPU's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from guardlit.training.update.loss_scale import GROWTH_INTERVAL, fit_scale

ACCUMULATION = 1296


def plugin() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu")


def gradients(scaler: torch.amp.GradScaler | None) -> tuple[Tensor, float]:
    """Of a deep network's first layer, for one accumulated micro-batch; and the fraction of zeros in all layers."""
    torch.manual_seed(0)
    layers = [nn.Linear(64, 64) for _ in range(16)]
    network = nn.Sequential(*[m for layer in layers for m in (layer, nn.Tanh())])
    x, target = torch.randn(16, 64), torch.randn(16, 64)
    with torch.autocast("cpu", torch.float16, enabled=scaler is not None):
        out = network(x)
    # as the objective's: small, and divided by the latent's elements; then by the accumulation, as Lightning does
    loss = (out.float() * target).flatten(1).sum(1).div(65536).mean() / ACCUMULATION
    if scaler is None:
        loss.backward()
    else:
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
    flat = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert layers[0].weight.grad is not None
    return layers[0].weight.grad, float((flat == 0).double().mean())


def test_the_first_scale_follows_the_accumulation():
    """With PyTorch's own scale the first layers lose most of their gradient; the larger one keeps it."""
    exact, none = gradients(None)
    assert none == 0
    stock, fitted = plugin(), plugin()
    fit_scale(fitted, ACCUMULATION)
    assert fitted.scaler.get_scale() == 2.0**27
    found = {}
    for name, scaler in {"stock": stock.scaler, "fitted": fitted.scaler}.items():
        gradient, zeros = gradients(scaler)
        found[name] = float((gradient - exact).norm() / exact.norm()), zeros
    assert found["stock"][0] > 0.5
    assert found["stock"][1] > 0.2
    assert found["fitted"][0] < 0.01
    assert found["fitted"][1] < 0.01


@pytest.mark.parametrize(("micro_batches", "exponent"), [(1, 16), (2, 17), (576, 26), (1296, 27)])
def test_it_is_a_power_of_two(micro_batches: int, exponent: int):
    precision = plugin()
    fit_scale(precision, micro_batches)
    assert precision.scaler.get_scale() == 2.0**exponent
    assert precision.scaler.get_growth_interval() == GROWTH_INTERVAL


def test_a_scale_that_was_chosen_stays():
    chosen = torch.amp.GradScaler("cpu", init_scale=1024.0)
    precision = MixedPrecision("16-mixed", "cpu", chosen)
    fit_scale(precision, 64)
    assert precision.scaler is chosen


def test_a_checkpoint_s_scale_is_put_back_as_it_was():
    first, resumed = plugin(), plugin()
    fit_scale(first, 64)
    scale = first.scaler.scale(torch.ones(()))  # the scale exists from its first use
    assert float(scale) == 2.0**22
    first.scaler.update(2.0**20)
    fit_scale(resumed, 64)
    resumed.load_state_dict(first.state_dict())
    assert resumed.scaler.get_scale() == 2.0**20
    assert resumed.scaler.get_growth_interval() == GROWTH_INTERVAL


def test_other_precisions_have_none():
    fit_scale(SimpleNamespace(), 64)
    precision = MixedPrecision("bf16-mixed", "cpu")
    fit_scale(precision, 64)
    assert precision.scaler is None
