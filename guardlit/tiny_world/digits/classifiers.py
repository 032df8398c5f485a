"""The proxy and the gold classifier, with different architectures, seeds and halves of the data."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from guardlit.rewards.digits.networks import GoldNet, ProxyNet


def train_proxy(images: Tensor, labels: Tensor, steps: int, seed: int) -> ProxyNet:
    """Train the proxy on clean gray images (N, 1, 32, 32) in [0, 1]; it is easy to fool."""
    torch.manual_seed(seed)
    net = ProxyNet()
    _fit(net, images, labels, steps, distortion=False)
    return net


def train_gold(images: Tensor, labels: Tensor, steps: int, seed: int) -> GoldNet:
    """Train the gold classifier on moved, rotated, sheared, faded and noisy gray images (N, 1, 32, 32) in [0, 1]."""
    torch.manual_seed(seed)
    net = GoldNet()
    _fit(net, images, labels, steps, distortion=True)
    return net


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of gray images (N, 1, 32, 32) whose most probable digit is the label."""
    predicted: Tensor = net.eval()(images).argmax(dim=1)
    return (predicted == labels).float().mean().item()


def _fit(net: nn.Module, images: Tensor, labels: Tensor, steps: int, distortion: bool) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(images), (128,))
        x = _distort(images[rows]) if distortion else images[rows]
        loss = cross_entropy(net(x), labels[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    net.eval()


def _distort(images: Tensor) -> Tensor:
    """Rotate by up to 15 degrees, scale and shear by up to 15 %, move by up to 4 pixels, fade, and add pixel noise."""
    n = len(images)
    angle = (torch.rand(n) * 2 - 1) * math.radians(15)
    matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(n, 2, 2)
    matrix = matrix + (torch.rand(n, 2, 2) * 2 - 1) * 0.15
    offset = (torch.rand(n, 2, 1) * 2 - 1) * 0.25
    grid = affine_grid(torch.cat([matrix, offset], dim=2), list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, align_corners=False)
    contrast, level = 0.5 + 0.5 * torch.rand(n, 1, 1, 1), 0.3 * torch.rand(n, 1, 1, 1)
    return (moved * contrast + level * torch.randn_like(moved)).clamp(0, 1)
