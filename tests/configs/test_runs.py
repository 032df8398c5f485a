"""Every shipped run on a real model trains tiny folders in the published formats; only paths and sizes change."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import guardlit, newest
from safetensors.torch import load_file
from scorer_files import make_hpsv2, make_imagereward
from tiny_geneval import make_color_clip, make_detector

CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("gold_*.yaml")))
SIGNS = ['a sign says "OPEN"', 'a cup with the words "Mind the Gap"']
OBJECTS = [
    {"prompt": "a photo of two dogs", "tag": "counting", "include": [{"class": "dog", "count": 2}]},
    {"prompt": "a red car", "tag": "colors", "include": [{"class": "car", "count": 1, "color": "red"}]},
]
SMALL = (
    "--data.prompts_per_round=2",
    "--data.images_per_prompt=2",
    "--data.updates_per_round=2",
    "--data.micro_batch=2",
    "--data.val_limit=1",
    "--model.policy.resolution=64",
    "--model.evaluation.num_inference_steps=2",
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.max_epochs=1",
)


@pytest.fixture(scope="module")
def proxy(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The options that give a run local scorers and prompts, by the run's name."""
    folder = tmp_path_factory.mktemp("proxies")
    made: dict[str, list[str]] = {}

    def make(kind: str) -> list[str]:
        here = folder / kind
        here.mkdir()
        match kind:
            case "ocr":
                (here / "train.txt").write_text("\n".join(SIGNS) + "\n")
                return [f"--data.train={here / 'train.txt'}", f"--data.val={here / 'train.txt'}"]
            case "geneval":
                (here / "train.jsonl").write_text("\n".join(map(json.dumps, OBJECTS)) + "\n")
                make_color_clip(here / "clip")
                scorer = {"detector": make_detector(here / "tiny"), "clip": here / "clip"}
                data = [f"--data.train={here / 'train.jsonl'}", f"--data.val={here / 'train.jsonl'}"]
                return [*data, *(f"--model.reward.{key}={value}" for key, value in scorer.items())]
            case "hpsv2":
                return [f"--model.reward.{key}={value}" for key, value in make_hpsv2(here).items()]
            case "multi":
                scorers = {
                    "HPSv2": make_hpsv2(here),
                    "PickScore": {"model": str(clip_folder)},
                    "ImageReward": make_imagereward(here),
                }
                terms = [{"scorer": {"class_path": name, "init_args": args}} for name, args in scorers.items()]
                return [f"--model.reward.terms={json.dumps(terms)}"]
            case _:
                return [f"--model.reward.model={clip_folder}"]

    def options(name: str) -> list[str]:
        kind = name.split("_")[1]
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]

    return options


REAL = [
    path for path in RUNS if path.stem not in {"tiny_digits", "tiny_words", "sd35_pickscore"}
]  # the last is a second name
ALWAYS = {"sd35_pickscore_guard", "sd35_pickscore_fast", "sd35_ocr_tempflow", "flux_geneval_guard", "flux_multi_mix"}
"""One of each kind of part; the others are slow tests."""


def _case(path: Path) -> pytest.param:
    return pytest.param(path, id=path.stem, marks=() if path.stem in ALWAYS else pytest.mark.slow)


@pytest.mark.parametrize("path", map(_case, REAL))
def test_it_trains_one_round_with_the_preset_of_a_gpu(path: Path, proxy, tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GUARDLIT_CACHE", str(tmp_path / "cache"))
    flux = path.stem.startswith("flux")
    files = [path, CONFIGS / "gpu" / ("48gb.yaml" if flux else "24gb.yaml")]
    if path.stem == "sd35_ocr_tempflow":
        files.append(CONFIGS / "parts/branching.yaml")
    configs = [word for file in files for word in ("--config", file)]
    here = (f"--model.policy.model={tiny('flux' if flux else 'sd3')}", f"--trainer.default_root_dir={tmp_path}")
    stored = "--model.policy.weights_dtype=bf16"  # fp16 trains with 16-mixed's loss scale, which a CPU lacks
    assert guardlit("fit", *configs, *here, *proxy(path.stem), *SMALL, stored) == 0
    assert torch.load(newest(tmp_path), weights_only=True)["global_step"] == 2
    exported = load_file(next(tmp_path.rglob("export/raw/*.safetensors")))
    assert all(bool(torch.isfinite(weight).all()) for weight in exported.values())
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        failed = [float(row["reward/failed"]) for row in csv.DictReader(file) if row.get("reward/failed")]
    assert failed == [0.0]


def test_the_words_train_one_round_and_every_gold_score_is_logged(tmp_path: Path):
    small = ("--data.prompts_per_round=2", "--data.images_per_prompt=2", "--data.updates_per_round=2")
    sizes = ("--data.micro_batch=4", "--data.rollout_batch=4", "--data.val_limit=2", "--data.val_images_per_prompt=2")
    once = ("--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", f"--trainer.default_root_dir={tmp_path}")
    assert guardlit("fit", "--config", CONFIGS / "tiny_words.yaml", *small, *sizes, *once) == 0
    assert torch.load(newest(tmp_path), weights_only=True)["global_step"] == 2
    with next(tmp_path.rglob("gold.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "2"]
    for name in ("wordcolor", "wordbackground", "wordrealism", "worddiversity", "average"):
        assert all(float(row[name]) > 0 for row in rows), name
    assert float(rows[0]["average"]) == 1


def test_the_words_without_a_recognizer_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("guardlit.rewards.ocr.engine._PACKAGES", ("onnxruntime", "no_such_recognizer"))
    where = f"--trainer.default_root_dir={tmp_path}"
    assert guardlit("fit", "--config", CONFIGS / "tiny_words.yaml", where) != 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.endswith("reading text needs no_such_recognizer: pip install 'guardlit[ocr]'")
