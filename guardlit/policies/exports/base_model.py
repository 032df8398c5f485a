"""A base model's public name, and its license."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from guardlit.assets import SCHEME

_HUB = "https://huggingface.co"
_STABILITY = {"license": "other", "license_name": "stabilityai-ai-community"}
LICENSES: Mapping[str, Mapping[str, str]] = {
    "stabilityai/stable-diffusion-3.5-medium": _STABILITY,
    "stabilityai/stable-diffusion-3.5-large": _STABILITY,
    "black-forest-labs/FLUX.1-dev": {"license": "other", "license_name": "flux-1-dev-non-commercial-license"},
    "black-forest-labs/FLUX.1-schnell": {"license": "apache-2.0"},
    "Qwen/Qwen-Image": {"license": "apache-2.0"},
}
"""As the models' own cards have them; a folder's card comes first, since licenses change."""
_ENTRIES = ("license", "license_name", "license_link")


def public_name(model: str) -> str:
    """A model's hub id, `guardlit://` path, or the name of its folder alone: the path may name a person."""
    return hub_id(model) or (model if model.startswith(SCHEME) else Path(model).expanduser().resolve().name)


def hub_id(model: str) -> str | None:
    """The hub id of a model, also of its folder in the hub's cache; None for any other folder."""
    if match := re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", f"{model}/"):
        return f"{match[1]}/{match[2]}"
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", model) is not None
    return model if is_id and not Path(model).is_dir() else None


def base_license(model: str, folder: Path) -> dict[str, str]:
    """The license entries of a base model: of the card in its folder, or of a known hub id; empty if neither says.

    Args:
        model: as the configuration names it.
        folder: with its files.
    """
    name = hub_id(model) or hub_id(str(folder))
    found = _of_card(folder / "README.md") or dict(LICENSES.get(name or "", {}))
    link = found.get("license_link", "LICENSE.md" if found.get("license") == "other" else "")
    if link and name and not link.startswith("http"):
        found["license_link"] = f"{_HUB}/{name}/blob/main/{link}"
    elif not link.startswith("http"):
        found.pop("license_link", None)  # relative to a repository that is not known
    return found


def _of_card(path: Path) -> dict[str, str]:
    import yaml
    from huggingface_hub import ModelCard

    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict() if path.is_file() else {}
    except (OSError, ValueError, yaml.YAMLError):  # what stands there is no card
        return {}
    return {name: value for name in _ENTRIES if isinstance(value := data.get(name), str)}
