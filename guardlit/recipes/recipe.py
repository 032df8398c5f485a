"""One recipe: the files it is made of, what they come to, and what it trains."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from guardlit.assets.recipes import file_of, folder
from guardlit.config.bases import bases
from guardlit.recipes.entries import Entries, Lines, merged, rendered

GOLD, PRESET, PART, METHOD = "gold", "preset", "part", "method"
RUN = "run"
KINDS = {"gold_": GOLD, "gpu/": PRESET, "parts/": PART, "methods/": METHOD}
"""What a recipe is by the beginning of its name; any other is a run."""


@dataclass(frozen=True)
class Recipe:
    """A configuration file that comes with guardlit, or several merged ones.

    Attributes:
        names: as for `--config`, in the order in which they merge.
    """

    names: tuple[str, ...]

    @property
    def kind(self) -> str:
        """What the first name is."""
        return next((kind for start, kind in KINDS.items() if self.names[0].startswith(start)), RUN)

    @cached_property
    def files(self) -> dict[str, Lines]:
        """All files, those that others build on first, each with its path below the recipes' folder."""
        paths = [path for name in self.names for path in [*bases(file_of(name), []), file_of(name)]]
        return {path.resolve().relative_to(folder().resolve()).as_posix(): Lines(path) for path in paths}

    @cached_property
    def entries(self) -> Entries:
        """What they come to."""
        entries: Entries = {}
        for lines in self.files.values():
            entries = merged(entries, lines.entries)
        return {key: entry for key, entry in entries.items() if key != "base"}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What they come to, as plain data."""
        settings: dict[str, Any] = yaml.safe_load("\n".join(rendered(self.entries)))
        return settings

    @property
    def fingerprint(self) -> str:
        """Of the settings; comments do not count."""
        return fingerprint(self.settings)

    @property
    def summary(self) -> str:
        """The first sentence on top of its file, up to a semicolon."""
        top = [line.removeprefix("#").strip() for line in self.files[f"{self.names[-1]}.yaml"].header]
        paragraph = " ".join(top[: top.index("")] if "" in top else top)
        return paragraph.partition(". ")[0].partition("; ")[0].rstrip(".:")

    @property
    def model(self) -> str:
        """The last part of the model's name."""
        return str(self._of("policy").get("model", "")).rpartition("/")[2]

    @property
    def proxy(self) -> str:
        """The reward's class, or those of all its terms."""
        reward = self.settings["model"]["reward"]
        terms = self._of("reward").get("terms", [])
        return " + ".join(_name(term["scorer"]) for term in terms) or _name(reward)

    @property
    def objective(self) -> str:
        """Its class, and the KL penalty if there is one."""
        model = self.settings["model"]
        return _name(model["objective"]) + (" + KL" if model.get("kl") else "")

    def _of(self, key: str) -> dict[str, Any]:
        value = self.settings["model"].get(key)
        return (value.get("init_args") or {}) if isinstance(value, dict) else {}


def fingerprint(settings: Any) -> str:
    """SHA-256 of plain data, 16 digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _name(value: str | dict[str, Any]) -> str:
    path = value if isinstance(value, str) else value["class_path"]
    return str(path).rpartition(".")[2]
