"""Pipeline folders in the diffusers layout: finding, downloading and checking them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardlit.assets import published, resolve
from guardlit.errors import GuardlitError, hub_refusal

LIBRARIES = (None, "diffusers", "transformers")
"""Libraries whose classes a model_index.json may name."""
PARTS = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")


def pipeline_folder(model: str, pipeline_class: str, components: Sequence[str], weights: bool = True) -> Path:
    """The local folder of a diffusers pipeline, downloaded when `model` is a hub id.

    Args:
        model: a folder, a `guardlit://` asset or a hub id such as `stabilityai/stable-diffusion-3.5-medium`.
        pipeline_class: what its model_index.json must name.
        components: subfolders it must have.
        weights: False needs only the configuration files of a hub id, and downloads nothing; of the models in
            `guardlit.assets.published` their sizes are bundled.

    Raises:
        GuardlitError: the folder is missing, incomplete, or of another pipeline.
    """
    folder = Path(resolve(model))
    if not folder.is_dir():
        folder = _download(model, weights)
    index = pipeline_index(folder)
    found = index.get("_class_name")
    if found != pipeline_class:
        raise GuardlitError(f"{folder} holds a {found}; {pipeline_class} is needed here")
    for component in components:
        if index.get(component, [None])[0] is None or not (folder / component).is_dir():
            present = sorted(p.name for p in folder.iterdir() if p.is_dir())
            raise GuardlitError(f"{folder} lacks the component '{component}' (it has {', '.join(present)})")
    return folder


def pipeline_index(folder: Path) -> dict[str, Any]:
    """The content of a pipeline's model_index.json, checked so that it can import no foreign code.

    Raises:
        GuardlitError: the file is missing, or names a component of an unknown library.
    """
    path = folder / "model_index.json"
    index = read_json(path, f"{folder} is no diffusers pipeline folder")
    for name, value in index.items():
        if name.startswith("_") or (not name.startswith(PARTS) and not isinstance(value, list)):
            continue
        if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, str | None) for v in value):
            raise GuardlitError(f"{path}: {name} is {value!r}; a component is [library, class], or [null, null]")
        if value[0] not in LIBRARIES:
            raise GuardlitError(
                f"{path}: {name} is of {value[0]!r}; components are of diffusers or transformers, and code that comes "
                "with a model is not run"
            )
    return index


def read_json(path: Path, complaint: str) -> dict[str, Any]:
    """The object in a JSON file; raises `GuardlitError`, with the complaint where the file is missing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise GuardlitError(f"{complaint}: it has no {path.name}") from None
    except (RecursionError, ValueError) as error:
        raise GuardlitError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise GuardlitError(f"{path} holds {type(value).__name__}, not an object")
    return value


def sample_digest(files: Sequence[Path]) -> str:
    """Digest of file names, sizes and 64 evenly spaced 64 kB blocks of each file: fast for encoders of 10 GB."""
    digest = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            for i in range(64):
                file.seek(i * max(size - 65536, 0) // 63)
                digest.update(file.read(65536))
                if size <= 65536:
                    break
    return digest.hexdigest()


def _download(model: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    if model.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise GuardlitError(f"model folder '{model}' does not exist, and it is no hub id of the form owner/name")
    patterns = ["model_index.json", "*/*.json"]
    if weights:
        patterns += ["*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns, local_files_only=not weights))
    except (OSError, HFValidationError, ValueError) as error:
        if not weights:
            if (bundled := published(model)) is not None:
                return bundled
            raise GuardlitError(f"model '{model}' is no folder here and not in the hub cache") from error
        if refusal := hub_refusal(error, model):
            raise GuardlitError(f"model '{model}' is no folder here and could not be downloaded: {refusal}") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GuardlitError(
            f"model '{model}' is no folder here, is not in the hub cache, and could not be downloaded: {reason}"
        ) from error
