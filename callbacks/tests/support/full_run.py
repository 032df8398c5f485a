"""A toy flow policy with validation images, and a full run of it with every callback."""

from types import SimpleNamespace

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
    phase_timer,
)
from toy_flow import Rounds, ToyFlow, transitions

PROMPTS = [f"the {ordinal} cup" for ordinal in ("first", "second", "third", "fourth", "fifth")]  # two ranks get 3 each
SIZE = 16
BASE = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)


class Table(torch.nn.Module):
    """The velocity of each step, read by a forward pass, so that FSDP2 can gather it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(BASE.clone())

    def forward(self, step):
        return self.weight[step]


class FullFlow(ToyFlow):
    """Validation images whose brightness depends on the weights; gold falls as the reward grows.

    Time passes only in training: a second per micro-batch.
    """

    def __init__(self, clock):
        super().__init__()
        del self.velocity
        self.table, self.clock, self.samples_made = Table(), clock, 0

    def configure_model(self):
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if self.device_mesh is not None and not isinstance(self.table, FSDPModule):
            fully_shard(self.table, mesh=self.device_mesh["data_parallel"])

    def predict(self, step):
        return self.table(step)

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 0:
            with torch.no_grad():
                self.old.copy_(self.table(torch.arange(3)))

    def training_step(self, batch, batch_idx):
        outputs = super().training_step(batch, batch_idx)
        self.clock.now += 1.0
        self.samples_made += len(outputs["step"])
        return outputs

    def validation_step(self, rows, batch_idx):
        velocity = self.table(torch.arange(3))
        light = 100 + 20 * velocity.sum() - 4 * abs(self.global_step - 9)
        generators = [torch.Generator().manual_seed(int(row)) for row in rows]
        noise = torch.stack([torch.rand(3, SIZE, SIZE, generator=generator) for generator in generators])
        images = (light * (0.5 + 0.5 * noise)).clamp(0, 255).round().to(torch.uint8)
        prompts = [PROMPTS[row] for row in rows]
        moved = (velocity - BASE)[:, None, None] * (1 + rows)[None, :, None]  # (steps, B, one latent element)
        kl = torch.stack([gaussian_step_kl(dv, gain=-0.3, std=0.5) for dv in moved], dim=1)
        return {
            "images": images,
            "prompts": prompts,
            "pair": [prompt[:5] for prompt in prompts],
            "reward": 0.1 * rows + 0.05 * self.global_step,
            "row": rows,
            "kl_from_base": kl,
        }

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.5)  # so that no round is like another


class BrightScorer:
    """Mean brightness, 0 to 1."""

    name = "bright"

    def setup(self, device):
        pass

    def score(self, request):
        values = request.images.float().mean(dim=(1, 2, 3)) / 255
        return SimpleNamespace(values=values, valid=torch.ones(len(values), dtype=torch.bool))


class Clock:
    """Time that passes only where the module advances it."""

    now = 0.0

    def __call__(self):
        return self.now


def all_callbacks(parameters_every=1, per_step=True, **stop):
    """One of each, with every option on."""
    kinds = {"raw": "raw_log_ratio", "normalized": "norm_log_ratio"}
    return [
        TrainableEMA(decay=0.5),
        PhaseTimer(samples="samples_made", flops_per_sample=5.0, peak_flops=100.0),
        RatioDistribution(**kinds, sample_weight="sample_weight", per_step=per_step),
        GradientNorm(parameters_every=parameters_every, per_step=per_step),
        GradientSpikes(ratio=1.5, sigmas=0.5, window=8, patience=3),
        GoldScore([BrightScorer()], metadata=None, index="row"),
        DriftSentinels(groups="pair", index="row"),
        SampleGrid(index="row", size=32, columns=3),
        KLFromBase(index="row", per_step=per_step),
        OverOptimizationStop(patience=2, **stop),
    ]


def fit(make_trainer, folder, callbacks, monkeypatch=None, ckpt=None, **options):
    """Trains a full run in rounds of six micro-batches, two a step, and returns its trainer."""
    clock = Clock()
    if monkeypatch is not None:
        monkeypatch.setattr(phase_timer, "perf_counter", clock)
    defaults = {"max_epochs": 8, "accumulate_grad_batches": 2, "num_sanity_val_steps": -1, "gradient_clip_val": 0.1}
    trainer = make_trainer(*callbacks, default_root_dir=folder, **{**defaults, **options})
    prompts = torch.utils.data.DataLoader(torch.arange(len(PROMPTS)))
    weights_only = {"weights_only": True} if ckpt else {}
    trainer.fit(FullFlow(clock), Rounds(transitions()), prompts, ckpt_path=ckpt, **weights_only)
    return trainer
