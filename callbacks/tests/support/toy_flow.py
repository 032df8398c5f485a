"""A one-dimensional flow policy whose ratios and gradients are known in closed form."""

import torch
from guardlit_callbacks.tools.lightning import Callback, LightningModule

GAIN = torch.tensor([0.05, 0.2, 0.6], dtype=torch.float64)
STD = torch.tensor([0.7, 0.4, 0.2], dtype=torch.float64)
STEPS, SAMPLES, CLIP = 3, 8, 5e-3


def transitions(updates=2, seed=0):
    """A round: `updates` x one micro-batch a step, each 8 samples of noise and advantage."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "step": torch.full((SAMPLES,), t),
            "noise": torch.randn(SAMPLES, generator=generator, dtype=torch.float64),
            "advantage": torch.randn(SAMPLES, generator=generator, dtype=torch.float64),
        }
        for _ in range(updates)
        for t in range(STEPS)
    ]


class Rounds:
    """A sized loader that yields the same micro-batches each epoch and can be resumed in the middle of one."""

    def __init__(self, batches):
        self.batches, self.position = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while True:  # Lightning takes len(self) of them, and never comes back after the last
            batch, self.position = self.batches[self.position], (self.position + 1) % len(self)
            yield batch
            if self.position == 0:
                return

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class ToyFlow(LightningModule):
    """x_next = g v + s noise with one trainable velocity a step; v_old is refreshed at the start of each round.

    log r = -(g dv)^2 / 2 s^2 + g dv noise / s, the normalized one is g dv noise; the loss is -A exp(log r).
    """

    def __init__(self, lr=0.1, drop=()):
        super().__init__()
        self.velocity = torch.nn.Parameter(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
        self.register_buffer("old", torch.zeros(STEPS, dtype=torch.float64))
        self.lr, self.drop = lr, drop

    def on_train_batch_start(self, batch, batch_idx):  # Lightning skips on_train_epoch_start in some resumes
        if batch_idx == 0:
            self.old.copy_(self.velocity.detach())

    def log_ratio(self, velocity, batch):
        gain, std, noise = GAIN[batch["step"]], STD[batch["step"]], batch["noise"]
        drift = gain * (velocity - self.old[batch["step"]])
        return -(drift**2) / (2 * std**2) + drift * noise / std, drift * noise

    def predict(self, step):
        return self.velocity[step]

    def training_step(self, batch, batch_idx):
        rank, world = self.global_rank, self.trainer.world_size
        batch = {name: values[rank::world] for name, values in batch.items()}
        velocity = self.predict(batch["step"])
        raw, normalized = self.log_ratio(velocity, batch)
        per_sample = -batch["advantage"] * raw.exp()
        (gradient,) = torch.autograd.grad(per_sample.sum(), velocity, retain_graph=True)
        outputs = {
            "loss": per_sample.mean(),
            "log_ratio": raw.detach(),
            "raw_log_ratio": raw.detach(),
            "norm_log_ratio": normalized.detach(),
            "advantage": batch["advantage"],
            "step": batch["step"],
            "timestep": 1 - batch["step"] / STEPS,
            "clipped": raw.detach().expm1().abs() > CLIP,
            "velocity_grad_norm": gradient.abs(),
            "sample_weight": (batch["noise"] < 1).double(),
        }
        return {name: value for name, value in outputs.items() if name not in self.drop}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Spy(Callback):
    """Every output of every micro-batch, one column per key."""

    def __init__(self):
        self.outputs = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.outputs.append({name: value.double() for name, value in outputs.items() if name != "loss"})

    def columns(self, first=0, last=None):
        chosen = self.outputs[first:last]
        return {name: torch.cat([o[name] for o in chosen]).numpy() for name in chosen[0]}
