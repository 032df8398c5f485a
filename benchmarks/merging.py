"""Error of the velocity when a LoRA is merged into half-precision weights: `python benchmarks/merging.py [--speed 20]`.

A random Stable Diffusion 3 model of 6 layers and width 384 (as `python -m benchmarks.loop --size mid`), LoRA of rank 32
on its attention, its B matrices of random numbers of several sizes: a step of AdamW moves every number by about the
learning rate, here 1e-4. The velocity with a separate adapter is compared with that of merged weights, at noisy states
of four steps, as the objective's log ratio; a clip range should be at least twice that. `update` is the log ratio
between the adapter and no adapter, for comparison, and `lost` the fraction of the weights' update that is lost to
rounding.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/support"))

import torch
from diffusers import SD3Transformer2DModel
from rich.console import Console
from rich.table import Table
from tiny_folders import make_sd3

from guardlit.objective import GRPOGuard
from guardlit.policies import LoRA, SD3Policy
from guardlit.rounds.noise import INITIAL, NoiseSource
from guardlit.sde import FlowSDE

LAYERS, WIDTH, HEADS, SIDE, STEPS = 6, 384, 6, 32, 10
TRAINED = (0, 3, 6, 8)  # of the steps, one a row
ROWS = len(TRAINED)
PROMPTS = [f"prompt {i}" for i in range(ROWS)]
SCALE = 4.5


def make(folder: Path) -> Path:
    """The model's folder."""
    make_sd3(folder, sample_size=SIDE)
    config = dict(SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer").config)
    config |= {"num_layers": LAYERS, "num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS}
    config |= {"caption_projection_dim": WIDTH, "dual_attention_layers": tuple(range(LAYERS // 2))}
    torch.manual_seed(0)
    SD3Transformer2DModel.from_config(config).save_pretrained(folder / "transformer")
    return folder


def load(folder: Path, dtype: str) -> SD3Policy:
    """The policy with its weights in this dtype."""
    torch.manual_seed(1)
    policy = SD3Policy(str(folder), 8 * SIDE, LoRA(), dtype, max_sequence_length=32, cache=None)
    policy.load()
    policy.encode(PROMPTS)
    return policy


@torch.no_grad()
def moved(policy: SD3Policy, size: float) -> None:
    """Set the B matrices to random numbers of this size."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in policy.named_parameters():
        if "lora_B.default" in name:
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator).sign())
    policy.refresh_old()


@torch.no_grad()
def row(policy: SD3Policy, autocast: bool) -> tuple[float, float, float]:
    """Log ratios (root mean square over steps) of merging and of the update, and the fraction that merging loses."""
    steps, coefficients = torch.tensor(TRAINED), FlowSDE(0.7).coefficients(policy.sigmas(STEPS))
    noise, conditioning = NoiseSource(0, 0, policy.latent_shape), policy.conditioning(PROMPTS)
    t = coefficients.sigmas[steps].float()
    x = noise.draw(range(ROWS), INITIAL).lerp(noise.draw(range(ROWS), 98), 1 - t.view(-1, 1, 1, 1))
    with torch.autocast("cpu", enabled=autocast):
        old = policy.velocity(x, t, conditioning, SCALE)
        with policy.merged():
            merged = policy.velocity(x, t, conditioning, SCALE)
        with policy.using("reference"):
            base = policy.velocity(x, t, conditioning, SCALE)
    rows = {name: getattr(coefficients, name)[steps] for name in ("std", "dt")}
    rows |= {"gain": coefficients.velocity[steps], "advantage": torch.ones(ROWS)}
    epsilon = noise.draw(range(ROWS), 99)
    sizes = [float(GRPOGuard()(v, old, epsilon, **rows).log_ratio.square().mean().sqrt()) for v in (merged, base)]
    return sizes[0], sizes[1], _lost(policy)


def _lost(policy: SD3Policy) -> float:
    """Fraction of the adapter's update that the merged weights lack, by norm."""
    layers = [m for m in policy.transformer.modules() if hasattr(m, "lora_A")]
    before = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    lost, total = 0.0, 0.0
    with policy.merged():
        for layer, old in zip(layers, before, strict=True):
            delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
            got = layer.get_base_layer().weight.float() - old.float()
            lost, total = lost + float((got - delta).square().sum()), total + float(delta.square().sum())
    return (lost / total) ** 0.5


@torch.no_grad()
def speed(policy: SD3Policy, autocast: bool, pairs: int) -> float:
    """CPU time of a call with the adapter over that of a merged one, in alternation: the median of the pairs."""
    x, t = torch.randn(ROWS, *policy.latent_shape), torch.full((ROWS,), 0.5)
    conditioning, ratios = policy.conditioning(PROMPTS), []
    with torch.autocast("cpu", enabled=autocast):
        for _ in range(pairs + 1):
            begun = time.process_time()
            policy.velocity(x, t, conditioning, SCALE)
            middle = time.process_time()
            with policy.merged():
                started = time.process_time()
                policy.velocity(x, t, conditioning, SCALE)
                ratios.append((middle - begun) / (time.process_time() - started))
    return float(torch.tensor(ratios[1:]).median())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=int, default=0, metavar="PAIRS", help="also time this many pairs of calls")
    options = parser.parse_args()
    table = Table(title="log ratio of merging (RatioNorm), against clip ranges 2e-6, 4e-6, 1e-4")
    for column in ("weights", "B, steps of 1e-4", "merging", "update", "lost"):
        table.add_column(column, justify="right")
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = make(Path(name) / "model")
        for dtype, autocast in (("fp32", False), ("fp32", True), ("bf16", False), ("fp16", False)):
            policy = load(folder, dtype)
            label = f"{dtype}{', bf16 autocast' if autocast else ''}"
            for steps in (1, 10, 100, 1000):
                moved(policy, steps * 1e-4)
                merging, update, lost = row(policy, autocast)
                print(label, steps, merging, update, lost, flush=True)
                table.add_row(label, str(steps), f"{merging:.1e}", f"{update:.1e}", f"{lost:.1%}")
            if options.speed and dtype != "fp16":
                ratio = speed(policy, autocast, options.speed)
                lines.append(f"{label}: a call with the adapter takes {ratio:.2f} times a merged one's CPU time")
    Console(width=110).print(table)
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
