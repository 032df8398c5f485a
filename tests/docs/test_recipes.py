"""docs/recipes.md: its costs are those of the configurations, and its arithmetic is the published one."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from benchmarks import recipe_evidence
from guardlit.recipes.evidence import LEVELS, evidence_of
from guardlit.rounds.settings import Rollout

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def recipes():
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "benchmarks/recipes.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipes"] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules["recipes"]


def test_the_page_has_the_costs_of_the_configurations(recipes):
    assert recipes.table(recipes.RATE) in PAGE


def test_the_page_names_every_run(recipes):
    assert recipes.costs().keys() <= set(re.findall(r"`(\w+)`", PAGE))


def test_one_forward_equals_what_torch_counts(recipes):
    """A transformer of SD3.5-M's shape on the meta device, under torch's counter."""
    import torch
    from diffusers import SD3Transformer2DModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            out_channels=16,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
        latents, text, pooled = torch.zeros(1, 16, 64, 64), torch.zeros(1, 205, 4096), torch.zeros(1, 2048)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(latents, text, pooled, torch.zeros(1))
    counted = counter.get_total_flops() / 1e12
    assert sum(recipes.NETWORKS["SD3Policy"].forward(512)) == pytest.approx(counted, rel=0.01)


def test_a_flux_forward_equals_what_torch_counts(recipes):
    import torch
    from diffusers import FluxTransformer2DModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
        one = torch.zeros(1)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(
                hidden_states=torch.zeros(1, 1024, 64),
                encoder_hidden_states=torch.zeros(1, 128, 4096),
                pooled_projections=torch.zeros(1, 768),
                timestep=one,
                guidance=one,
                img_ids=torch.zeros(1024, 3),
                txt_ids=torch.zeros(128, 3),
            )
    counted = counter.get_total_flops() / 1e12
    assert sum(recipes.NETWORKS["FluxPolicy"].forward(512)) == pytest.approx(counted, rel=0.01)


def test_trained_steps_are_those_of_the_module(recipes):
    window = {"class_path": "guardlit.rounds.windows.RandomWindow", "init_args": {"length": 3, "high": 5}}
    assert recipes.trained_steps({**vars(Rollout()), "window": window}) == 3
    assert recipes.trained_steps(vars(Rollout())) == 9


def test_the_page_has_the_evidence_that_is_recorded():
    assert recipe_evidence.table() in PAGE
    assert recipe_evidence.levels() in PAGE


def test_the_readme_has_the_evidence_that_is_recorded():
    """By level, the highest first; those of the lowest level that occurs stand as a number."""
    found: dict[str, list[str]] = {level: [] for level in reversed(LEVELS)}
    for recipe in recipe_evidence.runs():
        found[evidence_of(recipe).level].append(f"`{recipe.names[0]}`")
    *higher, (level, rest) = [(level, names) for level, names in found.items() if names]
    rows = [f"| {LEVELS[level]} | {', '.join(names)} |" for level, names in higher]
    table = "\n".join([*rows, f"| {LEVELS[level]} | the other {len(rest)} |"])
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table in readme
    assert f"one of {len(recipe_evidence.runs())}\n" in readme
