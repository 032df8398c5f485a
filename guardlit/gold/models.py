"""The rows of the table: the base model, checkpoints and exported weights, each identified by its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from guardlit_callbacks import TrainableEMA

from guardlit.checkpoints.contents import check_fingerprint
from guardlit.checkpoints.discovery import newest_intact
from guardlit.checkpoints.io import SafeCheckpointIO
from guardlit.checkpoints.manifest import MANIFEST
from guardlit.errors import GuardlitError
from guardlit.files import sha256
from guardlit.rounds.evaluate import check_base
from guardlit.training.model_card.sampling import read_sampling

if TYPE_CHECKING:
    from guardlit.policies.base import FlowPolicy
    from guardlit.rounds.settings import Sampling

Weights = Literal["ema", "raw", "both"]


@dataclass(frozen=True)
class Model:
    """One row of the table.

    Attributes:
        label: in the table.
        kind: the untrained `base`, a Lightning `checkpoint`, or `exported` weights.
        weights: `raw`, or the run's average `ema`; empty where there is no such choice.
        path: of the checkpoint or folder.
        sha256: of the checkpoint, or of the exported file; of the files' digests if there are several.
        step: number of updates, if the checkpoint holds it.
        base_steps: k, the last denoising steps that the base model takes; 0 for the base model itself.
    """

    label: str
    kind: Literal["base", "checkpoint", "exported"] = "base"
    weights: str = ""
    path: str | None = None
    sha256: str = ""
    step: int | None = None
    base_steps: int = 0

    def check(self, policy: FlowPolicy) -> None:
        """Raise `GuardlitError` unless a loaded policy can take these weights, and the base's where they are asked."""
        if self.kind == "exported":
            with policy.exported(Path(str(self.path))):
                self._check_base(policy)
        elif self.kind == "checkpoint":
            try:
                check_fingerprint(_metadata(Path(str(self.path))), policy.fingerprint())
            except GuardlitError as error:
                raise GuardlitError(f"{self.path}: {error}") from error
            self._check_base(policy)

    def _check_base(self, policy: FlowPolicy) -> None:
        try:
            check_base(policy, self.base_steps)
        except GuardlitError as error:
            raise GuardlitError(f"'{self.label}': {error}") from error


def with_base_steps(models: Sequence[Model], asked: Sequence[int], evaluation: Sampling) -> list[Model]:
    """A row for each number of last steps that the base model takes.

    Args:
        models: the base model and the others, as `find_models` gives them.
        asked: numbers of steps. Without any, exported weights take the one that was recorded with them, and the others
            the configuration's.
        evaluation: of the configuration.

    Returns:
        The base model once, and the others once for each number, which their labels say if there are several.

    Raises:
        GuardlitError: a number that is asked twice, negative or above T, or recorded for another T.
    """
    if (twice := next((k for k in asked if list(asked).count(k) > 1), None)) is not None:
        raise GuardlitError(f"--base_steps names {twice} twice")
    rows = []
    for model in models:
        if model.kind == "base":
            rows.append(model)
            continue
        for k in asked or [_recorded(model, evaluation)]:
            replace(evaluation, base_steps=k)  # refuses what no schedule has
            label = f"{model.label}, base_steps {k}" if len(asked) > 1 else model.label
            rows.append(replace(model, label=label, base_steps=k))
    return rows


def _recorded(model: Model, evaluation: Sampling) -> int:
    """The number of steps that was recorded with exported weights, else the configuration's."""
    recorded = read_sampling(Path(str(model.path))) if model.kind == "exported" else None
    if recorded is None:
        return evaluation.base_steps
    if recorded.base_steps and recorded.num_inference_steps != evaluation.num_inference_steps:
        raise GuardlitError(
            f"'{model.label}' was exported with {recorded.base_steps} of {recorded.num_inference_steps} steps by the "
            f"base model, and the evaluation has {evaluation.num_inference_steps} steps: give --base_steps"
        )
    return recorded.base_steps


def find_models(paths: Sequence[str], labels: Sequence[str], weights: Weights, runs: Path) -> list[Model]:
    """The base model and the models that are compared with it.

    Args:
        paths: checkpoints, `last` for the newest one below `runs`, folders of exported weights, or LoRA files.
        labels: one for each path, or none to name rows by their paths.
        weights: which weights of a checkpoint, or of the folder that `guardlit export` wrote: the average where there
            is one, the raw ones, or both.
        runs: where the runs of this configuration are.

    Raises:
        GuardlitError: a path that does not exist or holds something else; a wrong number of labels.
    """
    if labels and len(labels) != len(paths):
        raise GuardlitError(f"{len(labels)} --label for {len(paths)} --ckpt: give one for each, or none")
    models = [Model("base")]
    for number, path in enumerate(paths):
        found = list(_variants(newest_intact(runs) if path == "last" else Path(path).expanduser(), weights))
        for model in found:
            label = labels[number] if labels else model.label
            models.append(replace(model, label=f"{label} ({model.weights})" if len(found) > 1 else label))
    names = [model.label for model in models]
    if not labels:  # the same file name in two runs
        names = [m.label if names.count(m.label) == 1 else _long_label(m) for m in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise GuardlitError(f"two rows would be called '{twice}': name each --ckpt once, and give different --label")
    return [replace(model, label=name) for name, model in zip(names, models, strict=True)]


def _long_label(model: Model) -> str:
    return f"{model.path} ({model.weights})" if model.kind == "checkpoint" else str(model.path)


def _variants(place: Path, weights: Weights) -> Iterator[Model]:
    if place.is_file() and place.suffix == ".safetensors":
        yield Model(place.stem, "exported", "", str(place), _digest([place, *_settings_next_to(place)]))
    elif place.is_file() or (place / MANIFEST).is_file():
        checkpoint, digest = _metadata(place), sha256(place / MANIFEST if place.is_dir() else place)
        averaged = bool(checkpoint.get("callbacks", {}).get(TrainableEMA().state_key))
        for variant in _choose(weights, averaged, True, place):
            yield Model(place.stem, "checkpoint", variant, str(place), digest, checkpoint.get("global_step"))
    elif place.is_dir():
        there = {name: _weight_files(place / name) for name in ("ema", "raw")}
        if any(there.values()):  # both written by `guardlit export`
            for variant in _choose(weights, bool(there["ema"]), bool(there["raw"]), place):
                yield Model(place.name, "exported", variant, str(place / variant), _digest(there[variant]))
        elif files := _weight_files(place):
            yield Model(place.name, "exported", "", str(place), _digest(files))
        else:
            raise GuardlitError(f"{place} holds no exported weights: neither a LoRA nor a pipeline, nor raw/ or ema/")
    else:
        raise GuardlitError(
            f"--ckpt {place} does not exist; it must be a checkpoint, a folder of exported weights, or a LoRA file"
        )


def _choose(weights: Weights, averaged: bool, raw: bool, place: Path) -> list[str]:
    """The average where there is one, unless something else is asked for."""
    have = [name for name, there in (("ema", averaged), ("raw", raw)) if there]
    if weights == "raw" and not raw:
        raise GuardlitError(f"{place} holds no raw weights")
    return have if weights == "both" else ["raw"] if weights == "raw" else have[:1]


def _weight_files(folder: Path) -> list[Path]:
    """A LoRA's files, in the folder or in its `lora/`, or those of a pipeline's transformer."""
    for place in (folder, folder / "lora"):
        if files := sorted(place.glob("*.safetensors")):
            return [*files, *_settings_next_to(files[0])]
    return sorted(folder.glob("transformer/*.safetensors"))


def _settings_next_to(file: Path) -> list[Path]:
    """The settings of a PEFT folder, alpha among them, on which its images depend."""
    return [path for path in [file.with_name("adapter_config.json")] if path.is_file()]


def _digest(files: Sequence[Path]) -> str:
    digests = [sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _metadata(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint whose tensors have no data: fast for any size."""
    return SafeCheckpointIO().load_checkpoint(checkpoint, map_location="meta")
