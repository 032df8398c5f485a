"""The proxy and the gold classifier: other architectures, other seeds, other halves of the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from guardlit.rewards.digits.networks import GoldNet, ProxyNet


def train_proxy(pictures: Tensor, labels: Tensor, steps: int, seed: int) -> ProxyNet:
    """Fit the proxy on clean grey pictures (N, 1, 32, 32) in [0, 1]; nothing keeps it from being fooled."""
    torch.manual_seed(seed)
    net = ProxyNet()
    _fit(net, pictures, labels, steps, distortion=False)
    return net


def train_gold(pictures: Tensor, labels: Tensor, steps: int, seed: int) -> GoldNet:
    """Fit the gold classifier on moved, turned, sheared, faded and noisy grey pictures (N, 1, 32, 32) in [0, 1]."""
    torch.manual_seed(seed)
    net = GoldNet()
    _fit(net, pictures, labels, steps, distortion=True)
    return net


@torch.no_grad()
def accuracy(net: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """Share of grey pictures (N, 1, 32, 32) whose most probable digit is the label."""
    predicted: Tensor = net.eval()(pictures).argmax(dim=1)
    return (predicted == labels).float().mean().item()


def _fit(net: nn.Module, pictures: Tensor, labels: Tensor, steps: int, distortion: bool) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(pictures), (128,))
        x = _distort(pictures[rows]) if distortion else pictures[rows]
        loss = cross_entropy(net(x), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    net.eval()


def _distort(pictures: Tensor) -> Tensor:
    """Turn up to 15 degrees, scale and shear by up to 15 %, move by up to 4 pixels, fade, and add pixel noise."""
    n = len(pictures)
    angle = (torch.rand(n) * 2 - 1) * math.radians(15)
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(n, 2, 2)
    matrix = matrix + (torch.rand(n, 2, 2) * 2 - 1) * 0.15
    offset = (torch.rand(n, 2, 1) * 2 - 1) * 0.25
    grid = affine_grid(torch.cat([matrix, offset], dim=2), list(pictures.shape), align_corners=False)
    moved = grid_sample(pictures, grid, align_corners=False)
    contrast, level = 0.5 + 0.5 * torch.rand(n, 1, 1, 1), 0.3 * torch.rand(n, 1, 1, 1)
    return (moved * contrast + level * torch.randn_like(moved)).clamp(0, 1)
