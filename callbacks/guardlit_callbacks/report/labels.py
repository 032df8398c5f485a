"""Runs grouped into methods: runs of one label are seeds of one method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardlit_callbacks.figures import PALETTE
from guardlit_callbacks.report.data import ReportError, Run
from guardlit_callbacks.report.methods import Method


@dataclass(frozen=True)
class ConfigKeys:
    """Where a run's `config.yaml` names its method and its seeds; the defaults suit a LightningCLI.

    Attributes:
        method: dotted key of the method's name; of a class path the last part counts.
        settings: dotted keys of sections in which methods of one name may differ.
        seeds: dotted keys in which seeds of one method differ; the first one names the run.
        summary: name -> dotted key of the settings that matter most; those that a configuration has are shown on top.
    """

    method: str = "model.class_path"
    settings: tuple[str, ...] = ("model", "data")
    seeds: tuple[str, ...] = ("seed_everything",)
    summary: Mapping[str, str] = field(
        default_factory=lambda: {"optimizer": "optimizer.class_path", "learning rate": "optimizer.init_args.lr"}
    )


def group(runs: Sequence[Run], labels: Sequence[str] = (), keys: ConfigKeys = ConfigKeys()) -> list[Method]:
    """Groups runs into methods, in the order given.

    Args:
        runs: at least one.
        labels: one per run; by default the method that each configuration names, with the other settings that differ
            between runs of that name, or the folder's name if it names none.
        keys: where the configurations name them.

    Raises:
        ReportError: the number of labels is not that of the runs; more methods than colors.
    """
    if labels and len(labels) != len(runs):
        raise ReportError(f"--label is given {len(labels)} times for {len(runs)} runs; give one for each, in order")
    settings = [flatten(run.config) for run in runs]
    by_label: dict[str, dict[int, Run]] = {}
    for i, label in enumerate(labels or _labels(runs, settings, keys)):
        by_label.setdefault(label, {})[i] = runs[i]
    if len(by_label) > len(PALETTE):
        raise ReportError(
            f"{len(by_label)} methods, and a figure shows {len(PALETTE)} at most; give fewer runs, or seeds of one "
            "method the same --label"
        )
    return [
        Method(label, tuple(members.values()), _run_names(members, settings, keys))
        for label, members in by_label.items()
    ]


def _run_names(members: Mapping[int, Run], settings: Sequence[Mapping[str, str]], keys: ConfigKeys) -> tuple[str, ...]:
    """The seeds of a method's runs if they tell them apart, or else the folders' names."""
    seeds = [settings[i].get(keys.seeds[0], "") if keys.seeds else "" for i in members]
    if all(seed.isdecimal() for seed in seeds) and len(set(seeds)) == len(seeds):
        return tuple(f"seed {seed}" for seed in seeds)
    return tuple(run.name for run in members.values())


def _labels(runs: Sequence[Run], settings: Sequence[Mapping[str, str]], keys: ConfigKeys) -> list[str]:
    names = [mapping.get(keys.method, "").rpartition(".")[2] for mapping in settings]
    labels = []
    for name, run, mapping in zip(names, runs, settings, strict=True):
        same = [other for other_name, other in zip(names, settings, strict=True) if other_name == name]
        differing = [key for key in differences(same) if _within(key, keys.settings) and key not in keys.seeds]
        details = ", ".join(f"{key.rpartition('.')[2]} {mapping.get(key)}" for key in differing)
        labels.append(run.name if not name else f"{name} ({details})" if details else name)
    return labels


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def differences(settings: Iterable[Mapping[str, str]]) -> list[str]:
    """The keys whose values are not equal everywhere."""
    settings = list(settings)
    keys = dict.fromkeys(key for mapping in settings for key in mapping)
    return [key for key in keys if len({mapping.get(key) for mapping in settings}) > 1]


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted keys and text: {"model": {"lr": 1}} -> {"model.lr": "1"}; lists count from 0."""
    if isinstance(config, Mapping) and config:
        items: Iterable[tuple[Any, Any]] = config.items()
    elif isinstance(config, list) and config:
        items = enumerate(config)
    elif not prefix:
        return {}
    else:
        return {prefix: "null" if config is None else str(config)}
    dot = "." if prefix and not prefix.endswith(" ") else ""
    return {k: v for key, value in items for k, v in flatten(value, f"{prefix}{dot}{key}").items()}
