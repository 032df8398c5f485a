"""What a model card needs to know about exported weights, from the policy that wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ExportFormat = Literal["diffusers", "comfyui", "peft"]
"""Who reads the files."""


@dataclass(frozen=True)
class ExportFacts:
    """Exported weights as a model card describes them.

    Attributes:
        base: the base model's hub id, `guardlit://` path, or the name of its folder; never a path of this machine.
        hub_id: of the base model, where it is known.
        adapter: whether the files hold a LoRA; else the complete weights.
        library: that reads the files, by the hub's name for it; empty for a program the hub has no name for.
        license: entries of the base model's own model card: `license`, `license_name`, `license_link`; empty if it is
            not known.
        usage: how to load the files, in Markdown.
        settings: of the adapter, by name.
    """

    base: str
    hub_id: str | None
    adapter: bool
    library: str
    license: Mapping[str, str]
    usage: str
    settings: Mapping[str, str] = field(default_factory=dict)
