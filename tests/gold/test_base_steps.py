"""`guardlit evaluate --base_steps`: several numbers of last steps by the base model in one table."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
import torch
from runs import guardlit
from torchrun import torchrun
from velocities import disturb

from guardlit.policies import LoRA, SD3Policy

ROOT = Path(__file__).parents[2]
RUN = ("--config", ROOT / "configs/tiny_digits.yaml", "--trainer.accelerator", "cpu", "--data.rollout_batch", 4)
COMMAND = ("evaluate", *RUN, "--config", ROOT / "configs/gold_tiny.yaml", "--images_per_prompt", 2)
TWO = ("--trainer.devices", 2, "--trainer.strategy", "ddp")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the digits' pipeline that changes every image."""
    policy = SD3Policy("guardlit://digits", 32, lora=LoRA(4, 8), max_sequence_length=8, cache=None)
    policy.load()
    disturb(policy)
    folder = tmp_path_factory.mktemp("lora") / "noisy"
    policy.export(folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gold")
    assert guardlit(*COMMAND, "--ckpt", lora, "--base_steps", "0,4,10", "--out", out) == 0
    return out


def models(out: Path) -> dict[str, dict]:
    return {row["label"]: row for row in json.loads((out / "table.json").read_text())["models"]}


def images(out: Path) -> dict[str, list[bytes]]:
    """Each model's images in their order."""
    found: dict[str, list[bytes]] = {}
    for row in csv.DictReader((out / "scores.csv").open()):
        found.setdefault(row["model"], []).append((out / row["file"]).read_bytes())
    return found


def test_a_row_for_each_number(evaluated: Path):
    drawn = images(evaluated)
    labels = ["base", "noisy, base_steps 0", "noisy, base_steps 4", "noisy, base_steps 10"]
    assert list(drawn) == labels
    base, none, four, all_steps = drawn.values()
    assert all_steps == base
    assert not set(none) & set(four)
    assert not set(four) & set(base)
    assert [row["base_steps"] for row in models(evaluated).values()] == [0, 0, 4, 10]
    lines = (evaluated / "table.md").read_text().splitlines()
    assert lines[0].startswith("| model | base steps | digitprobability* | digitgold |")
    assert [line.split(" | ")[:2] for line in lines[2:6]] == [
        [f"| {label}", k] for label, k in zip(labels, ("", "0", "4", "10"), strict=True)
    ]
    rows = list(csv.DictReader((evaluated / "table.csv").open()))
    assert {(row["model"], row["base_steps"]) for row in rows} == set(zip(labels, ("0", "0", "4", "10"), strict=True))
    assert "base steps: the last denoising steps" in (evaluated / "table.md").read_text()


def test_another_number_is_drawn_and_a_known_one_is_not(evaluated: Path, lora: Path, capsys: pytest.CaptureFixture):
    before = images(evaluated)
    assert guardlit(*COMMAND, "--ckpt", lora, "--base_steps", 4, "--out", evaluated) == 0
    assert "images: 0 drawn" in capsys.readouterr().err
    assert images(evaluated)["noisy"] == before["noisy, base_steps 4"]
    assert guardlit(*COMMAND, "--ckpt", lora, "--base_steps", 2, 4, "--out", evaluated) == 0
    assert "images: 20 drawn" in capsys.readouterr().err
    after = images(evaluated)
    assert after["noisy, base_steps 4"] == before["noisy, base_steps 4"] != after["noisy, base_steps 2"]
    assert guardlit("evaluate", "--rescore", "--out", evaluated) == 0
    assert [row["base_steps"] for row in models(evaluated).values()] == [0, 2, 4]
    assert "base_steps" not in json.loads((evaluated / "table.json").read_text())["provenance"]["sampling"]
    assert guardlit(*COMMAND, "--ckpt", lora, "--base_steps", "0,4,10", "--out", evaluated) == 0
    assert images(evaluated) == before


def test_without_the_setting_tables_and_keys_are_as_they_were(lora: Path, tmp_path: Path):
    """The folders of images have the names that they had before there was such a setting."""
    assert guardlit(*COMMAND, "--ckpt", lora, "--out", tmp_path) == 0
    assert "base steps" not in (tmp_path / "table.md").read_text()
    document = json.loads((tmp_path / "drawn.json").read_text())
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    sampling = {key: value for key, value in document["sampling"].items() if key != "model"}
    assert sampling.keys() == {
        *("policy", "files", "resolution", "weights_dtype", "encoders", "num_inference_steps", "guidance_scale"),
        *("sampler", "noise", "precision"),
    }
    for row in document["models"]:
        identity = {"format": 1, "weights": (row["kind"], row["weights"], row["sha256"])}
        identity |= {"sampling": sampling, "prompts": prompts}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        assert row["folder"] == key[:16]


def test_validation_on_one_or_two_processes_draws_the_same(evaluated: Path, lora: Path, tmp_path: Path):
    """Its images are those of the table; its reward and grid are equal on one and two processes."""
    jpeg = ("--model.reward", "JPEGCompressibility")  # a function of the bytes alone
    alone = ("--data.rollout_batch", 1)  # ranks batch other images together, and sums round by the batch
    starts = (*RUN, *jpeg, *alone, "--model.policy.init_args.lora.start", lora)
    late = ("--model.evaluation.base_steps", 4, "--data.val_images_per_prompt", 2)
    keep = {"class_path": "validation_images.KeepImages", "init_args": {"folder": str(tmp_path / "kept")}}
    grid = {"class_path": "guardlit_callbacks.SampleGrid", "init_args": {"max_images": 20}}

    def validate(folder: str, *callbacks: dict) -> tuple[object, ...]:
        place = ("--trainer.default_root_dir", tmp_path / folder, "--trainer.callbacks", json.dumps(callbacks))
        return ("validate", *starts, *late, *place)

    assert guardlit(*validate("one", keep, grid)) == 0
    assert torchrun(tmp_path / "two.py", (*validate("two", grid), *TWO)) == 0
    assert _reward(tmp_path / "one") == pytest.approx(_reward(tmp_path / "two"), rel=1e-6)
    pictures = [next((tmp_path / name).rglob("step_*.png")).read_bytes() for name in ("one", "two")]
    assert pictures[0] == pictures[1]
    batches = [torch.load(file, weights_only=True) for file in (tmp_path / "kept").glob("*.pt")]
    kept = {int(i): image for batch in batches for i, image in zip(batch["index"], batch["images"], strict=True)}
    drawn = images(evaluated)["noisy, base_steps 4"]
    assert len(kept) == len(drawn) == 20
    for index, image in kept.items():
        assert int((_pixels(drawn[index]).int() - image.int()).abs().max()) <= 1


def _pixels(png: bytes) -> torch.Tensor:
    from torchvision.io import decode_png

    return decode_png(torch.frombuffer(bytearray(png), dtype=torch.uint8))


def _reward(folder: Path) -> float:
    rows = list(csv.DictReader(next(folder.rglob("metrics.csv")).open()))
    return float(next(row["val/reward"] for row in rows if row.get("val/reward")))
