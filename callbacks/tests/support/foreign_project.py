"""A project that knows nothing of guardlit: its own module, batches, images and scorers, trained either way."""

import numpy as np
import torch
from guardlit_callbacks import (
    DriftSentinels,
    GoldScore,
    GradientNorm,
    GradientSpikes,
    KLFromBase,
    OverOptimizationStop,
    PhaseTimer,
    RatioDistribution,
    SampleGrid,
    TrainableEMA,
    gaussian_step_kl,
)
from guardlit_callbacks.tools.lightning import LightningModule

STEPS, SIZE, LIMIT = 4, 16, 0.05
PROMPTS = ["a red square", "a blue square"]


class Sketcher(LightningModule):
    """Draws squares from noise in four steps; images are floats in [-1, 1], and no step returns metadata."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = torch.nn.Linear(8, 8).requires_grad_(False)
        self.layer = torch.nn.Linear(8, 3)
        self.base = torch.nn.Linear(8, 3).requires_grad_(False)
        self.base.load_state_dict(self.layer.state_dict())

    def loss_and_outputs(self, batch):
        velocity = self.layer(self.frozen(batch["latent"]))
        log_ratio = ((velocity - batch["old"]) * batch["noise"]).mean(dim=1)
        loss = -log_ratio.exp() * batch["advantage"]
        (gradient,) = torch.autograd.grad(loss.sum(), velocity, retain_graph=True)
        return loss.mean(), {
            "log_ratio": log_ratio.detach(),
            "advantage": batch["advantage"],
            "step": batch["step"],
            "clipped": log_ratio.detach().abs() > 0.1,
            "velocity_grad_norm": gradient.norm(dim=1),
        }

    def training_step(self, batch, batch_idx):
        loss, outputs = self.loss_and_outputs(batch)
        return {"loss": loss, **outputs}

    def validation_step(self, rows, batch_idx):
        noise = torch.stack([torch.randn(64, 8, generator=torch.Generator().manual_seed(int(row))) for row in rows])
        colors = self.layer(self.frozen(noise)).tanh().transpose(1, 2).reshape(len(rows), 3, 8, 8)
        images = torch.nn.functional.interpolate(colors, size=(SIZE, SIZE))
        prompts = [PROMPTS[row % 2] for row in rows]
        latents = self.frozen(noise)
        kl = gaussian_step_kl(self.layer(latents) - self.base(latents), gain=-0.25, std=0.5)[:, None]
        return {"images": images, "prompts": prompts, "reward": images.mean(dim=(1, 2, 3)), "kl_from_base": kl}

    def configure_optimizers(self):
        return torch.optim.SGD(self.layer.parameters(), lr=0.3)


class Manual(Sketcher):
    """The same training by hand: zeroes, clips and steps within `training_step`.

    Args:
        accumulate: batches an optimizer step.
        zero_at_once: zero the gradients right after the step, not before the next backward pass.
    """

    def __init__(self, accumulate=1, zero_at_once=False):
        super().__init__()
        self.automatic_optimization = False
        self.accumulate, self.zero_at_once = accumulate, zero_at_once
        self.gradients, self.norms = [], []

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss, outputs = self.loss_and_outputs(batch)
        self.gradients.append(torch.autograd.grad(loss, self.layer.parameters(), retain_graph=True))
        if batch_idx % self.accumulate == 0:
            optimizer.zero_grad()
        self.manual_backward(loss)
        if (batch_idx + 1) % self.accumulate == 0:
            self.clip_gradients(optimizer, LIMIT, "norm")
            self.norms.append(norm([p.grad for p in self.layer.parameters()]))
            optimizer.step()
            if self.zero_at_once:
                optimizer.zero_grad()
        return outputs


def norm(gradients):
    return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())


def transitions(n=2 * STEPS, size=6):
    """Batches of one step each."""
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    rows = [{"latent": draw(8), "old": 0.1 * draw(3), "noise": draw(3), "advantage": draw(())} for _ in range(n * size)]
    rows = [{**row, "step": i // size % STEPS} for i, row in enumerate(rows)]
    return torch.utils.data.DataLoader(rows, batch_size=size)


def prompts(n=6, batch_size=4):
    return torch.utils.data.DataLoader(torch.arange(n), batch_size=batch_size)


class Redness:
    """Mean of the red channel, as an array."""

    def setup(self, device):
        pass

    def score(self, request):
        return request.images[:, 0].cpu().numpy().mean(axis=(1, 2)) / 255


class Variety:
    """Mean distance to the other images of the prompt, as a list."""

    compares_images = True

    def setup(self, device):
        pass

    def score(self, request):
        flat = request.images.flatten(1).float() / 255
        distances = torch.cdist(flat, flat) / np.sqrt(flat.shape[1])
        return (distances.sum(dim=1) / (len(flat) - 1)).tolist()


def instruments(signed=(-1, 1)):
    """Every callback as its docs say, but GradientSpikes."""
    return [
        RatioDistribution(),
        GradientNorm(parameters_every=1),
        GoldScore([Redness(), Variety()], value_range=signed),
        OverOptimizationStop(patience=3, action="warn"),
        DriftSentinels(value_range=signed),
        SampleGrid(max_images=4, value_range=signed),
        KLFromBase(),
        TrainableEMA(decay=0.5),
        PhaseTimer(),
    ]


def spikes():
    return GradientSpikes(patience=2, names=("step",))
