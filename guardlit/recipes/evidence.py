"""How far each recipe is tested, read from the results that `python -m benchmarks.recipe_evidence` has recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from guardlit.assets.recipes import folder, names
from guardlit.recipes.recipe import PRESET, Recipe, fingerprint

FILE = "evidence.json"
LEVELS = {
    "parsed": "its settings parse, instantiate and divide on every GPU preset",
    "round": "it trains one round on tiny folders in the published formats",
    "gpu": "its architecture trains on a GPU, with the weights that it names",
    "trained": "it has trained to its end with the weights that it names",
    "reproduced": "the paper's average gold score lies in the measured interval",
}
"""The levels, lowest first, and what each says."""
NONE = "none"


@dataclass(frozen=True)
class Evidence:
    """What is recorded of one recipe.

    Attributes:
        proofs: facts by level; a record of other settings than the recipe has now is left out.
        memory: planned GB on one GPU, by preset; `""` is without one.
    """

    proofs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    memory: Mapping[str, float] = field(default_factory=dict)

    @property
    def level(self) -> str:
        """The highest one."""
        return next((level for level in reversed(LEVELS) if level in self.proofs), NONE)

    @property
    def memory_text(self) -> str:
        """`48 GB, 14 GB with gpu/24gb`, or `-` if it was not planned; a preset that saves nothing is left out."""
        plain = self.memory.get("", 0)
        parts = [
            (f"{value:.0f} GB" if value >= 1 else "< 1 GB") + (f" with {preset}" if preset else "")
            for preset, value in self.memory.items()
            if not preset or value < plain
        ]
        return ", ".join(parts) or "-"


def evidence_of(recipe: Recipe) -> Evidence:
    """What is recorded of a recipe as it is now."""
    record = _records().get(" ".join(recipe.names), {})
    if not record:
        return Evidence()
    now = {recipe.fingerprint, with_presets(recipe)}
    proofs = {level: proof for level, proof in record["proofs"].items() if proof["settings"] in now}
    return Evidence(proofs, record.get("memory_gb", {}) if record.get("planned") in now else {})


def with_presets(recipe: Recipe) -> str:
    """The fingerprint of what was tested or planned together with the GPU presets: of a recipe and all of these."""
    presets = [found for name in names() if (found := Recipe((name,))).kind == PRESET]
    return fingerprint([each.settings for each in (recipe, *presets)])


@cache
def _records() -> dict[str, Any]:
    file = folder() / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
