"""Faults between a run and its resume: its files or its configuration have changed or are gone."""

from __future__ import annotations

from pathlib import Path

from benchmarks.faults.scenario import Fault

ERROR = "guardlit fit: error: "


def _prompts(folder: Path) -> Path:
    return folder / "prompts.txt"


def _model(folder: Path) -> Path:
    return folder.parents[1] / "model"


def _hide(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}-hidden"))


def _show(path: Path) -> None:
    path.with_name(f"{path.name}-hidden").rename(path)


def _another_prompt(folder: Path) -> None:
    text = _prompts(folder).read_text()
    _prompts(folder).with_suffix(".kept").write_text(text)
    _prompts(folder).write_text(text.replace("dogs", "cats"))


FAULTS = [
    Fault(
        "prompt file gone at the resume",
        corrupt=lambda folder: _hide(_prompts(folder)),
        refused=(ERROR, "prompts.txt"),
        fix=lambda folder: _show(_prompts(folder)),
    ),
    Fault(
        "prompt file changed before the resume",
        corrupt=_another_prompt,
        refused=(ERROR, "prompts"),
        fix=lambda folder: _prompts(folder).with_suffix(".kept").rename(_prompts(folder)),
    ),
    Fault(
        "model folder gone at the resume",
        corrupt=lambda folder: _hide(_model(folder)),
        refused=(ERROR, "model"),
        fix=lambda folder: _show(_model(folder)),
    ),
    Fault("resumed with another seed", with_options=("--seed_everything", "7"), refused=(ERROR, "seed")),
    Fault(
        "resumed with more images a prompt",
        with_options=("--data.images_per_prompt", "8"),
        refused=(ERROR, "images_per_prompt"),
    ),
    Fault(
        "resumed with another learning target (LoRA rank)",
        with_options=("--model.policy.init_args.lora.rank", "8"),
        refused=(ERROR, "rank"),
    ),
]
