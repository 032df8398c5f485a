"""Counts the cost of shipped runs: `python benchmarks/recipes.py [--tflops 326]` prints the table of docs/recipes.md.

Counted, not measured: two FLOP a multiply-add, only matrix products and attention of the transformer. The VAE,
the text encoders (each prompt once), the proxy and validation are not included.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RATE = 326.0
"""TFLOP/s of one GPU, modeled: 33 % of the 989 that an H100 or H200 does in 16 bits."""


@dataclass(frozen=True)
class Network:
    """A transformer over `image` and `text` tokens; products and attention of one forward, in TFLOP.

    Attributes:
        width: of a token.
        joint: blocks with attention over all tokens and 12 width^2 weights for each token.
        image_only: second attentions over the image's tokens, 4 width^2 weights each.
        text: tokens of the prompt.
    """

    width: int
    joint: int
    image_only: int
    text: int

    def forward(self, resolution: int) -> tuple[float, float]:
        """Matrix products and attention, TFLOP."""
        image = (resolution // 16) ** 2
        tokens = image + self.text
        products = 2 * self.width**2 * (12 * self.joint * tokens + 4 * self.image_only * image)
        attention = 4 * self.width * (self.joint * tokens**2 + self.image_only * image**2)
        return products / 1e12, attention / 1e12


NETWORKS = {
    "SD3Policy": Network(width=1536, joint=24, image_only=13, text=77 + 128),  # 3.5-medium
    "FluxPolicy": Network(width=3072, joint=19 + 38, image_only=0, text=128),  # FLUX.1-dev
}


@dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
        images: in a round.
        rounds: of the run.
        updates: of the run.
        rollout: TFLOP an image.
        training: TFLOP an image.
    """

    images: int
    rounds: int
    updates: int
    rollout: float
    training: float

    def hours(self, tflops: float, rounds: int | None = None) -> float:
        """GPU hours at a rate in TFLOP/s; of all rounds by default."""
        rounds = self.rounds if rounds is None else rounds
        return self.images * rounds * (self.rollout + self.training) / tflops / 3600


def cost(settings: dict[str, Any], trained: int) -> Cost:
    """The cost of a run's resolved settings, with `trained` steps of each image."""
    model, data = settings["model"], settings["data"]
    policy, rollout = model["policy"], model["rollout"]
    family, options = policy["class_path"].rpartition(".")[2], policy["init_args"]
    products, attention = NETWORKS[family].forward(options["resolution"])
    guided = 2 if family == "SD3Policy" and rollout["guidance_scale"] > 1 else 1
    forward = guided * (products + attention)
    # backward, a frozen product costs one product for its input's gradient, and attention two for each of its products
    step = forward + guided * (products + 2 * attention) + forward * bool(options["gradient_checkpointing"])
    # old velocities are recomputed after a round's first update only; `auto` may use stored ones
    again = 0 if model["old_velocity"] == "stored" else 1 - 1 / data["updates_per_round"]
    step += forward * (again + (model["kl"] is not None))
    images, rounds = data["prompts_per_round"] * data["images_per_prompt"], settings["trainer"]["max_epochs"]
    return Cost(
        images=images,
        rounds=rounds,
        updates=rounds * data["updates_per_round"],
        rollout=rollout["num_inference_steps"] * forward,
        training=trained * data["inner_epochs"] * step,
    )


def trained_steps(rollout: dict[str, Any]) -> int:
    """Number of trained steps of each image, from resolved `model.rollout` settings."""
    from guardlit.rounds import windows
    from guardlit.rounds.settings import Rollout

    window = rollout["window"]
    if window is not None:
        window = getattr(windows, window["class_path"].rpartition(".")[2])(**window["init_args"])
    return Rollout(**{**rollout, "window": window}).train_steps


@cache
def costs() -> dict[str, Cost]:
    """The cost of every shipped run on a real model, by name."""
    from guardlit.commands.lightning_cli import settings_of

    found = {}
    configs = ROOT / "configs"
    for path in sorted([*configs.glob("flux_*.yaml"), *configs.glob("sd35_*.yaml")]):
        settings = settings_of(["fit", f"--config={path}", "--data.train=prompts.txt"])
        found[path.stem] = cost(settings, trained_steps(settings["model"]["rollout"]))
    return found


def table(tflops: float) -> str:
    """A Markdown table, one row a run."""
    lines = [
        "| run | images a round | updates | TFLOP an image, rollout + training | GPU hours a round | in all |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, c in costs().items():
        of_image = f"{c.rollout:.0f} + {c.training:.0f}"
        lines.append(
            f"| `{name}` | {c.images} | {c.updates} | {of_image} | {c.hours(tflops, 1):.3f} | {c.hours(tflops):.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tflops", type=float, default=RATE, help="of one GPU, TFLOP/s (default: %(default)s)")
    print(table(parser.parse_args().tflops))
