"""Components of a pipeline folder, loaded with checks that diffusers and transformers leave out."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guardlit.devices.storage import plain
from guardlit.errors import GuardlitError
from guardlit.policies.folders.pipeline_folder import PARTS, pipeline_index, read_json

VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


def quiet() -> None:
    """Disable the progress bars of diffusers and transformers: guardlit shows its own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def load_component(loader: Any, folder: Path, component: str, **kwargs: Any) -> Any:
    """`loader.from_pretrained` of one component, refusing missing or unexpected weights.

    Raises:
        GuardlitError: weights that are missing, cannot be read, or do not fit the component's config.
    """
    quiet()
    config = read_json(folder / component / "config.json", f"{folder / component} cannot be loaded")
    check_variants(folder / component, "diffusion_pytorch_model")
    if (found := config.get("_class_name", loader.__name__)) != loader.__name__:
        raise GuardlitError(f"{folder / component} holds a {found}; {loader.__name__} is needed here")
    try:
        model, info = loader.from_pretrained(
            folder, subfolder=component, local_files_only=True, use_safetensors=True, output_loading_info=True, **kwargs
        )
    except Exception as error:  # diffusers and safetensors raise many kinds; each means that this file is unusable
        raise GuardlitError(f"{folder / component} cannot be loaded as {loader.__name__}: {_reason(error)}") from error
    _complete(folder / component, loader, info, ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _finite(folder / component, model)
    return model


def check_variants(path: Path, stem: str) -> None:
    """Refuse weights of a variant, such as `model.fp16.safetensors`, where those without one are missing.

    Args:
        path: folder of a component.
        stem: of the file of its weights.

    Raises:
        GuardlitError: naming the variants.
    """
    if any((path / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json")):
        return
    names = (re.fullmatch(rf"{stem}\.(\w+)(?:-\d+-of-\d+)?\.safetensors", file.name) for file in path.glob("*"))
    if variants := sorted({name[1] for name in names if name is not None}):
        raise GuardlitError(
            f"{path}: its weights are of the variant {' and '.join(variants)} only, and variants are not read; "
            f"download {stem}.safetensors too, or rename the files"
        )


def _reason(error: Exception) -> str:
    """The error's text in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def _complete(path: Path, loader: Any, info: Mapping[str, Any], kinds: Sequence[str]) -> None:
    """Refuse weights that do not match the network: the libraries only warn, and leave missing weights random."""
    for kind in kinds:
        if info.get(kind):
            keys = sorted(map(str, info[kind]))
            raise GuardlitError(
                f"{path}: {len(keys)} {kind.replace('_', ' ')} for {loader.__name__}, first '{keys[0]}'"
            )


def _finite(path: Path, model: nn.Module) -> None:
    """Refuse weights with NaN or infinity: a broken decoder gives black images, and their rewards look valid."""
    for name, parameter in model.named_parameters():
        parts = [part for part in plain(parameter) if part.is_floating_point()]  # of a quantized one, its scales
        if not all(bool(part.to(torch.float32).sum().isfinite()) for part in parts):
            raise GuardlitError(f"{path}: its weight '{name}' holds NaN or infinity; copy or download it again")


def load_scheduler(folder: Path) -> Any:
    """The flow-matching scheduler of a pipeline.

    Raises:
        GuardlitError: another kind of scheduler, or numbers that make no schedule.
    """
    import diffusers

    loader = diffusers.FlowMatchEulerDiscreteScheduler
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path, f"{folder / 'scheduler'} describes no schedule")
    if (found := config.get("_class_name")) != loader.__name__:
        raise GuardlitError(f"{path}: found {found}; only {loader.__name__} is a flow-matching schedule")
    for name, default in (("shift", 1.0), ("num_train_timesteps", 1000)):
        _number(path, name, config.get(name, default), least=math.ulp(0))
    if (terminal := config.get("shift_terminal")) is not None:
        _number(path, "shift_terminal", terminal)
        if terminal >= 1:
            raise GuardlitError(f"{path}: shift_terminal is {terminal!r}; the last step's sigma is below 1")
    if config.get("invert_sigmas"):
        raise GuardlitError(f"{path}: invert_sigmas is set; a schedule that falls from noise to image is needed")
    try:
        return loader.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    except Exception as error:  # as in load_component
        raise GuardlitError(f"{path} does not describe a {loader.__name__}: {_reason(error)}") from error


def dynamic_shift(folder: Path, config: Mapping[str, Any], tokens: int) -> float:
    """`mu` of a scheduler's dynamic shift for an image of `tokens` tokens, as FLUX's pipeline computes it.

    Raises:
        GuardlitError: the folder's scheduler lacks a number that it needs.
    """
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    path = folder / "scheduler" / "scheduler_config.json"
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    for name in names:
        _number(path, name, config[name])
    if config["base_image_seq_len"] >= config["max_image_seq_len"]:
        raise GuardlitError(f"{path}: base_image_seq_len must be below max_image_seq_len")
    return float(calculate_shift(tokens, *(config[name] for name in names)))


def check_scaling(folder: Path, vae: Any, shifted: bool) -> None:
    """Refuse a VAE whose latents cannot be scaled back; raises `GuardlitError`.

    Args:
        folder: of the pipeline.
        vae: loaded.
        shifted: whether its configuration must have a shift_factor.
    """
    path = folder / "vae" / "config.json"
    _number(path, "scaling_factor", vae.config.get("scaling_factor", 1.0), least=math.ulp(0))
    if (shift := vae.config.get("shift_factor", 0.0)) is not None or shifted:
        _number(path, "shift_factor", shift)


def _number(path: Path, name: str, value: object, least: float = -sys.float_info.max) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise GuardlitError(f"{path}: {name} is {value!r}; a {'positive ' if least > 0 else ''}number is needed")


def load_pipeline(loader: Any, folder: Path, **kwargs: Any) -> Any:
    """`loader.from_pretrained` of a pipeline; `kwargs` give its dtype and all components but the text encoders.

    Raises:
        GuardlitError: text encoders that cannot be loaded.
    """
    import transformers

    quiet()
    needed = {n: v[1] for n, v in pipeline_index(folder).items() if n not in kwargs and n.startswith(PARTS) and v[0]}
    for name in needed:
        if name.startswith("tokenizer") and not any((folder / name / file).is_file() for file in VOCABULARIES):
            # transformers would build an empty tokenizer
            raise GuardlitError(f"{folder / name} has no vocabulary; one of {', '.join(VOCABULARIES)} is needed")
    loaded: dict[str, Any] = {}
    try:
        for name in (name for name in needed if name.startswith("text_encoder")):
            if not (folder / name).is_dir():
                raise GuardlitError(f"{folder} lacks the component '{name}' that its model_index.json names")
            check_variants(folder / name, "model")
            # one by one, since a pipeline does not report missing weights
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
        raise GuardlitError(f"{folder}: text encoders cannot be loaded: {_reason(error)}") from error
