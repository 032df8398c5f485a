"""Pipeline folders in the diffusers layout: finding them, and saying what is wrong with one."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guardlit.assets import resolve
from guardlit.errors import GuardlitError
from guardlit.policies.weights.storage import plain

LIBRARIES = (None, "diffusers", "transformers")
"""Whose classes a model_index.json may name."""
PARTS = ("transformer", "vae", "scheduler", "text_encoder", "tokenizer")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


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
    """What a pipeline's model_index.json says, with nothing in it that would have a module imported.

    Raises:
        GuardlitError: there is none, or it names a component of another library than those that are known.
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
    config = read_json(folder / component / "config.json", f"{folder / component} cannot be loaded")
    if (found := config.get("_class_name", loader.__name__)) != loader.__name__:
        raise GuardlitError(f"{folder / component} holds a {found}; {loader.__name__} is needed here")
    try:
        model, info = loader.from_pretrained(
            folder, subfolder=component, local_files_only=True, use_safetensors=True, output_loading_info=True, **kwargs
        )
    except Exception as error:  # diffusers and safetensors raise many kinds; each means that this file is bad
        reason = " ".join(str(error).split())[:300]
        raise GuardlitError(f"{folder / component} cannot be loaded as {loader.__name__}: {reason}") from error
    _complete(folder / component, loader, info, ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _finite(folder / component, model)
    return model


def _complete(path: Path, loader: Any, info: Mapping[str, Any], kinds: Sequence[str]) -> None:
    """Refuse weights that are not the network's: the libraries only warn, and leave what is missing random."""
    for kind in kinds:
        if info.get(kind):
            keys = sorted(map(str, info[kind]))
            raise GuardlitError(
                f"{path}: {len(keys)} {kind.replace('_', ' ')} for {loader.__name__}, first '{keys[0]}'"
            )


def _finite(path: Path, model: nn.Module) -> None:
    """Refuse weights with NaN or infinity: images of a broken decoder are black, and rewards of them are numbers."""
    for name, parameter in model.named_parameters():
        parts = [part for part in plain(parameter) if part.is_floating_point()]  # of a quantized one, its scales
        if not all(bool(part.to(torch.float32).sum().isfinite()) for part in parts):
            raise GuardlitError(f"{path}: its weight '{name}' holds NaN or infinity; copy or download it again")


def load_scheduler(folder: Path) -> Any:
    """The flow-matching schedule of a pipeline.

    Raises:
        GuardlitError: one of another kind, or with numbers that make no schedule.
    """
    import diffusers

    loader = diffusers.FlowMatchEulerDiscreteScheduler
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path, f"{folder / 'scheduler'} describes no schedule")
    if (found := config.get("_class_name")) != loader.__name__:
        raise GuardlitError(f"{path}: found {found}; only {loader.__name__} is a flow-matching schedule")
    for name, default in (("shift", 1.0), ("num_train_timesteps", 1000)):
        _number(path, name, config.get(name, default), least=math.ulp(0))
    if config.get("invert_sigmas"):
        raise GuardlitError(f"{path}: invert_sigmas is set; a schedule that falls from noise to image is needed")
    try:
        return loader.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    except Exception as error:  # as in load_component
        reason = " ".join(str(error).split())[:300]
        raise GuardlitError(f"{path} does not describe a {loader.__name__}: {reason}") from error


def check_scaling(folder: Path, vae: Any) -> None:
    """Refuse a VAE whose latents cannot be scaled back; raises `GuardlitError`."""
    path = folder / "vae" / "config.json"
    _number(path, "scaling_factor", vae.config.get("scaling_factor", 1.0), least=math.ulp(0))
    _number(path, "shift_factor", vae.config.get("shift_factor", 0.0))


def _number(path: Path, name: str, value: object, least: float = -sys.float_info.max) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise GuardlitError(f"{path}: {name} is {value!r}; a {'positive ' if least > 0 else ''}number is needed")


def load_pipeline(loader: Any, folder: Path, **kwargs: Any) -> Any:
    """`loader.from_pretrained` of a pipeline whose parts other than the text encoders are given.

    Raises:
        GuardlitError: text encoders that cannot be loaded.
    """
    import transformers

    quiet()
    needed = {n: v[1] for n, v in pipeline_index(folder).items() if n not in kwargs and n.startswith(PARTS) and v[0]}
    for name in needed:
        if name.startswith("tokenizer") and not any((folder / name / file).is_file() for file in VOCABULARIES):
            # transformers would make one up
            raise GuardlitError(f"{folder / name} has no vocabulary; one of {', '.join(VOCABULARIES)} is needed")
    loaded: dict[str, Any] = {}
    try:
        for name in (name for name in needed if name.startswith("text_encoder")):
            # by itself, since a pipeline does not say which weights are missing
            encoder = getattr(transformers, needed[name])
            loaded[name], info = encoder.from_pretrained(
                folder / name, local_files_only=True, weights_only=True, dtype=kwargs["dtype"], output_loading_info=True
            )
            _complete(folder / name, encoder, info, ("missing_keys", "mismatched_keys"))
            _finite(folder / name, loaded[name])
        return loader.from_pretrained(folder, local_files_only=True, **kwargs, **loaded)
    except GuardlitError:
        raise
    except Exception as error:  # as in load_component
        reason = " ".join(str(error).split())[:300]
        raise GuardlitError(f"{folder}: text encoders cannot be loaded: {reason}") from error


def read_json(path: Path, complaint: str) -> dict[str, Any]:
    """An object in a JSON file; raises `GuardlitError`, with the complaint where there is no such file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise GuardlitError(f"{complaint}: it has no {path.name}") from None
    except (RecursionError, ValueError) as error:
        raise GuardlitError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise GuardlitError(f"{path} holds {type(value).__name__}, not an object")
    return value
