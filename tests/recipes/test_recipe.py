"""What a recipe says of itself, and how far it is tested."""

from __future__ import annotations

import pytest

import guardlit.recipes.evidence as evidence
from guardlit.assets.recipes import names
from guardlit.recipes.evidence import LEVELS, NONE, evidence_of
from guardlit.recipes.recipe import RUN, Recipe

RUNS = [name for name in names() if Recipe((name,)).kind == RUN]


def test_what_a_run_trains():
    recipe = Recipe(("sd35_ocr_flow_grpo",))
    assert (recipe.model, recipe.proxy, recipe.objective) == ("stable-diffusion-3.5-medium", "OCR", "FlowGRPO + KL")
    assert Recipe(("flux_multi_mix",)).proxy == "HPSv2 + PickScore + ImageReward"
    assert Recipe(("tiny_digits",)).proxy == "DigitProbability"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gpu/24gb", "preset"),
        ("gold_tiny", "gold"),
        ("parts/sd35", "part"),
        ("methods/pcpo", "method"),
        ("tiny_words", "run"),
    ],
)
def test_its_kind_is_in_its_name(name: str, kind: str):
    assert Recipe((name,)).kind == kind


def test_a_second_name_has_the_same_fingerprint_and_a_setting_changes_it():
    assert Recipe(("sd35_pickscore",)).fingerprint == Recipe(("sd35_pickscore_guard",)).fingerprint
    assert Recipe(("sd35_pickscore", "gpu/24gb")).fingerprint != Recipe(("sd35_pickscore",)).fingerprint


@pytest.mark.parametrize("name", RUNS)
def test_its_record_is_of_its_present_settings(name: str):
    """After a change: `python -m benchmarks.recipe_evidence`."""
    found = evidence_of(Recipe((name,)))
    assert found.level in LEVELS
    assert found.memory


def test_the_highest_level_counts_and_a_record_of_other_settings_does_not(monkeypatch: pytest.MonkeyPatch):
    recipe = Recipe(("tiny_digits",))
    now = {"settings": recipe.fingerprint}
    records = {"tiny_digits": {"proofs": {"parsed": now, "round": now, "trained": {"settings": "of another"}}}}
    monkeypatch.setattr(evidence, "_records", lambda: records)
    assert evidence_of(recipe).level == "round"
    records["tiny_digits"]["proofs"]["trained"] = now
    assert evidence_of(recipe).level == "trained"
    assert evidence_of(Recipe(("tiny_words",))).level == NONE
