"""Pipeline folders in the diffusers layout: finding them, and saying what is wrong with one."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardlit.assets import resolve
from guardlit.errors import GuardlitError


def pipeline_folder(model: str, pipeline_class: str, components: Sequence[str], weights: bool = True) -> Path:
    """The local folder of a diffusers pipeline, downloaded when `model` is a hub id.

    Args:
        model: a folder, a `guardlit://` asset or a hub id such as `stabilityai/stable-diffusion-3.5-medium`.
        pipeline_class: what its model_index.json must name.
        components: subfolders it must have.
        weights: false makes do with the configuration files of a hub id, and downloads nothing.

    Raises:
        GuardlitError: not there, not that pipeline, or incomplete.
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
    """What a pipeline's model_index.json says; raises `GuardlitError` where there is none."""
    return read_json(folder / "model_index.json", f"{folder} is no diffusers pipeline folder")


def no_guidance(folder: Path, scale: float, reason: str) -> GuardlitError:
    """The complaint about a guidance scale for a model that can take none."""
    return GuardlitError(
        f"guidance_scale={scale}: {folder} {reason}; "
        "set model.rollout.guidance_scale and model.evaluation.guidance_scale to 1"
    )


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
            raise GuardlitError(f"model '{model}' is no folder here and not in the hub cache") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GuardlitError(
            f"model '{model}' is no folder here, is not in the hub cache, and could not be downloaded: {reason}"
        ) from error


def quiet() -> None:
    """Silence the libraries' progress bars: guardlit shows its own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def load_component(loader: Any, folder: Path, component: str, **kwargs: Any) -> Any:
    """`loader.from_pretrained` of one component, refusing missing or unexpected weights.

    Raises:
        GuardlitError: weights that are not there, cannot be read, or do not fit the component's config.
    """
    quiet()
    try:
        model, info = loader.from_pretrained(
            folder, subfolder=component, local_files_only=True, use_safetensors=True, output_loading_info=True, **kwargs
        )
    except Exception as error:  # diffusers and safetensors raise many kinds; each means that this file is bad
        reason = " ".join(str(error).split())[:300]
        raise GuardlitError(f"{folder / component} cannot be loaded as {loader.__name__}: {reason}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            keys = sorted(map(str, info[kind]))
            raise GuardlitError(
                f"{folder / component}: {len(keys)} {kind.replace('_', ' ')} for {loader.__name__}, first '{keys[0]}'"
            )
    return model


def load_pipeline(loader: Any, folder: Path, **kwargs: Any) -> Any:
    """`loader.from_pretrained` of a pipeline whose parts other than the text encoders are given.

    Raises:
        GuardlitError: text encoders that cannot be loaded.
    """
    quiet()
    try:
        return loader.from_pretrained(folder, local_files_only=True, **kwargs)
    except Exception as error:  # as in load_component
        reason = " ".join(str(error).split())[:300]
        raise GuardlitError(f"{folder}: text encoders cannot be loaded: {reason}") from error


def read_json(path: Path, complaint: str) -> dict[str, Any]:
    """An object in a JSON file; raises `GuardlitError`, with the complaint where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise GuardlitError(f"{complaint}: it has no {path.name}") from None
    except ValueError as error:
        raise GuardlitError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise GuardlitError(f"{path} holds {type(value).__name__}, not an object")
    return value
