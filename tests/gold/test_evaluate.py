"""`guardlit evaluate` on the tiny world, through the command line."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import guardlit, newest

from guardlit.gold.models import find_models
from guardlit.gold.pictures import PictureFolder
from guardlit.gold.scores import Scoring
from guardlit.policies import SD3Policy

ROOT = Path(__file__).parents[2]
RUN = ("--config", ROOT / "configs/tiny_digits.yaml", "--trainer.accelerator", "cpu", "--data.rollout_batch", 8)
GOLD = ("--config", ROOT / "configs/gold_tiny.yaml")
TWO_IMAGES = ("--images_per_prompt", 2)
METRICS = ["digitprobability", "digitgold", "digitrealism", "digitdiversity"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round: a checkpoint with an average, and the LoRAs exported from it."""
    folder = tmp_path_factory.mktemp("trained")
    small = ("--data.prompts_per_round", 2, "--data.images_per_prompt", 4, "--data.micro_batch", 9)
    quick = ("--trainer.max_epochs", 1, "--data.val", "null", "--model.optimizer.lr", "1e-2")
    callbacks = '["guardlit_callbacks.TrainableEMA", "guardlit.training.export.ExportAtEnd"]'
    assert guardlit("fit", *RUN, *small, *quick, *runs(folder), "--trainer.callbacks", callbacks) == 0
    return folder


def runs(folder: Path) -> tuple[object, ...]:
    return ("--trainer.default_root_dir", folder)


@pytest.fixture(scope="module")
def evaluated(trained: Path) -> Path:
    """Both weights of the checkpoint, and both exported LoRAs; tests that change it take a copy."""
    out = trained / "gold"
    assert again(trained, out) == 0
    return out


def table(out: Path) -> dict:
    return json.loads((out / "table.json").read_text())


def scores(out: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of scores.csv by model."""
    rows: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader((out / "scores.csv").open()):
        rows.setdefault(row["model"], []).append(row)
    return rows


def again(trained: Path, out: Path, *more: object) -> int:
    """The command of `evaluated`, on another folder."""
    both = ("--ckpt", "last", newest(trained, "export"), "--weights", "both", "--label", "checkpoint", "lora")
    return guardlit("evaluate", *RUN, *GOLD, *TWO_IMAGES, *runs(trained), *both, "--out", out, *more)


def refuse(monkeypatch: pytest.MonkeyPatch, *places: tuple[type, str]) -> None:
    """Let these methods fail."""

    def called(self: object, *_: object) -> None:
        raise AssertionError("was not to be called")

    for owner, name in places:
        monkeypatch.setattr(owner, name, called)


# what the table says --------------------------------------------------------------------------------------------------


def test_an_exported_lora_is_its_checkpoint_bit_for_bit(evaluated: Path):
    rows = scores(evaluated)
    assert list(rows) == ["base", "checkpoint (ema)", "checkpoint (raw)", "lora (ema)", "lora (raw)"]
    for weights in ("ema", "raw"):
        for one, other in zip(rows[f"checkpoint ({weights})"], rows[f"lora ({weights})"], strict=True):
            assert one["file"] != other["file"]  # drawn twice
            assert (evaluated / one["file"]).read_bytes() == (evaluated / other["file"]).read_bytes()
            assert [one[m] for m in METRICS] == [other[m] for m in METRICS]
    drawn = [[row["file"].rpartition("_")[2] for row in rows[name]] for name in list(rows)[:3]]
    assert all(a != b for a, b in zip(drawn[0], drawn[1], strict=True))  # and training had an effect
    assert all(a != b for a, b in zip(drawn[1], drawn[2], strict=True))


def test_the_table_is_what_numpy_makes_of_the_scores(evaluated: Path):
    """Means, Average, intervals and paired differences, computed once more from scores.csv."""
    by_prompt = {}
    for model, rows in scores(evaluated).items():
        assert [int(row["image"]) for row in rows] == list(range(20))
        assert [row["prompt"] for row in rows[:10]] == [row["prompt"] for row in rows[10:]]
        by_prompt[model] = {m: np.array([float(r[m]) for r in rows]).reshape(2, 10).mean(axis=0) for m in METRICS}
    draws = np.random.default_rng(0).integers(10, size=(1000, 10))
    base = by_prompt["base"]
    for row in table(evaluated)["models"]:
        own = by_prompt[row["label"]]
        for metric in METRICS:
            found = row["metrics"][metric]
            assert found["value"] == pytest.approx(own[metric].mean(), rel=1e-12)
            assert found["difference"] == pytest.approx((own[metric] - base[metric]).mean(), abs=1e-12)
            low, high = np.quantile(own[metric][draws].mean(axis=1), [0.025, 0.975])
            assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-9)
            low, high = np.quantile((own[metric] - base[metric])[draws].mean(axis=1), [0.025, 0.975])
            assert (found["difference_low"], found["difference_high"]) == pytest.approx((low, high), abs=1e-12)
        found = row["metrics"]["average"]
        gold = own["digitgold"].mean() / base["digitgold"].mean()
        realism = base["digitrealism"].mean() / own["digitrealism"].mean()  # a distance
        assert found["value"] == pytest.approx((gold + realism) / 2, rel=1e-12)
        assert found["difference"] == pytest.approx(found["value"] - 1, abs=1e-12)
        gold = own["digitgold"][draws].mean(axis=1) / base["digitgold"][draws].mean(axis=1)
        realism = base["digitrealism"][draws].mean(axis=1) / own["digitrealism"][draws].mean(axis=1)
        ends = np.quantile((gold + realism) / 2, [0.025, 0.975])
        assert (found["low"], found["high"]) == pytest.approx(tuple(ends), rel=1e-9)
    assert found["value"] != 1


def test_csv_and_markdown_say_the_same(evaluated: Path):
    numbers = {(row["label"], m): e for row in table(evaluated)["models"] for m, e in row["metrics"].items()}
    rows = list(csv.DictReader((evaluated / "table.csv").open()))
    assert {(row["model"], row["metric"]) for row in rows} == set(numbers)
    for row in rows:
        assert {k: float(row[k]) for k in numbers[row["model"], row["metric"]]} == numbers[row["model"], row["metric"]]
        assert (row["scored"], row["asked"]) == ("20", "20")
    lines = (evaluated / "table.md").read_text().splitlines()
    head = "| model | weights | updates | digitprobability* | digitgold | digitrealism ↓ | digitdiversity | Average |"
    assert lines[0] == head
    one = numbers["checkpoint (raw)", "average"]
    cell = f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
    assert next(line for line in lines if line.startswith("| checkpoint (raw) | raw | 4 |")).endswith(f" {cell} |")
    gold = numbers["checkpoint (raw)", "digitgold"]["difference"]
    below = lines[lines.index("Differences to the base model on the same prompts:") :]
    assert f" {gold:+#.2g} [" in next(line for line in below if line.startswith("| checkpoint (raw) |"))
    assert "10 prompts x 2 images; 20 of 20 images" in "\n".join(lines)


def test_the_provenance_names_every_file_by_its_content(evaluated: Path, trained: Path):
    document = table(evaluated)
    checkpoint, lora = newest(trained), newest(trained, "export") / "ema/pytorch_lora_weights.safetensors"
    digests = {row["label"]: row["sha256"] for row in document["models"]}
    assert digests["checkpoint (ema)"] == digests["checkpoint (raw)"] == _sha256(checkpoint)
    assert digests["lora (ema)"] == _sha256(lora)
    provenance = document["provenance"]
    weights = ROOT / "guardlit/assets/digits_scorers/gold.safetensors"
    assert provenance["scorers"]["digitgold"]["weights_sha256"] == _sha256(weights)
    assert provenance["scorers"]["digitgold"]["class"] == "guardlit.rewards.digits.scorers.DigitGold"
    assert provenance["prompts"]["count"] == 10
    assert provenance["sampling"]["num_inference_steps"] == 10
    assert provenance["command"][:2] == ["guardlit", "evaluate"]
    assert provenance["versions"]["torch"]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_images_are_those_of_validation(evaluated: Path, trained: Path, tmp_path: Path):
    keep = {"class_path": "validation_images.KeepImages", "init_args": {"folder": str(tmp_path)}}
    callbacks = json.dumps([{"class_path": "guardlit_callbacks.TrainableEMA"}, keep])
    two = ("--data.val_images_per_prompt", 2, "--trainer.callbacks", callbacks)
    assert guardlit("validate", *RUN, *two, *runs(trained), "--ckpt_path", "last") == 0
    rows = scores(evaluated)["checkpoint (ema)"]
    seen = set()
    for file in tmp_path.glob("*.pt"):
        batch = torch.load(file, weights_only=True)
        for index, image in zip(batch["index"].tolist(), batch["images"], strict=True):
            assert torch.equal(_picture(evaluated / rows[index]["file"]), image)
            seen.add(index)
    assert seen == set(range(20))


def _picture(path: Path) -> torch.Tensor:
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_tasks_count_equally(evaluated: Path, trained: Path, tmp_path: Path, capsys):
    prompts = [
        {"prompt": f"a handwritten {name}", "tag": tag} for name, tag in (("one", "a"), ("two", "a"), ("three", "b"))
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    column = ("--gold.scorers.tagged", "brightness.TaggedBrightness")
    images = ("--prompts", file, "--images_per_prompt", 1, "--gold.scorers.digitdiversity", "brightness.Brightness")
    assert guardlit("evaluate", *RUN, *GOLD, *column, *images, *runs(trained), "--out", tmp_path / "out") == 0
    values = [float(row["tagged"]) for row in scores(tmp_path / "out")["base"]]
    metrics = table(tmp_path / "out")["models"][0]["metrics"]
    assert metrics["tagged/a"]["value"] == pytest.approx((values[0] + values[1]) / 2)
    assert metrics["tagged/b"]["value"] == pytest.approx(values[2])
    assert metrics["tagged"]["value"] == pytest.approx(((values[0] + values[1]) / 2 + values[2]) / 2)


def test_prompts_may_be_texts(trained: Path, tmp_path: Path):
    brightness = ("--gold.scorers", "{brightness: brightness.Brightness}", "--images_per_prompt", 1)
    texts = ("--prompts", "a red cup", "seven: a [digit]")
    assert guardlit("evaluate", *RUN, *brightness, *runs(trained), *texts, "--out", tmp_path) == 0
    assert [row["prompt"] for row in scores(tmp_path)["base"]] == ["a red cup", "seven: a [digit]"]
    assert table(tmp_path)["provenance"]["prompts"]["source"] == ["a red cup", "seven: a [digit]"]


def test_equal_names_give_way_to_paths(tmp_path: Path, clip_folder: Path):
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        shutil.copytree(clip_folder, tmp_path / run / "lora")
    models = find_models([str(tmp_path / "a/lora"), str(tmp_path / "b/lora"), str(clip_folder)], [], "ema", tmp_path)
    assert [m.label for m in models] == ["base", f"{tmp_path}/a/lora", f"{tmp_path}/b/lora", clip_folder.name]


# what is not done twice -----------------------------------------------------------------------------------------------


@pytest.fixture
def copied(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of the evaluation, to be corrupted; file times are kept."""
    return Path(shutil.copytree(evaluated, tmp_path / "gold"))


def times(out: Path) -> dict[str, int]:
    """Of images and scores, when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".png", ".sqlite")}


def test_the_same_command_again_draws_and_scores_nothing(evaluated: Path, trained: Path, monkeypatch, capsys):
    before, files = table(evaluated), times(evaluated)
    refuse(monkeypatch, (SD3Policy, "load"), (Scoring, "predict_step"))
    assert again(trained, evaluated) == 0
    err = capsys.readouterr().err
    assert "images: 0 drawn, 100 in all" in err
    assert "scores: 0 computed, 400 in all" in err
    assert (table(evaluated)["models"], times(evaluated)) == (before["models"], files)


def test_rescore_needs_neither_model_nor_checkpoint(copied: Path, monkeypatch, capsys):
    before = scores(copied)
    refuse(monkeypatch, (SD3Policy, "load"), (SD3Policy, "source"), (PictureFolder, "write"))
    gold = {
        "gold": {"scorers": {"jpeg": "JPEGCompressibility", "bright": "brightness.Brightness"}, "average": ["bright"]}
    }
    (copied / "other.yaml").write_text(yaml.safe_dump(gold))
    assert guardlit("evaluate", "--rescore", "--out", copied, "--config", copied / "other.yaml") == 0
    assert "scores: 120 computed, 200 in all" in capsys.readouterr().err  # the LoRAs' images are the checkpoint's
    for model, rows in scores(copied).items():
        assert [row["file"] for row in rows] == [row["file"] for row in before[model]]
        for row in rows:
            expected = _picture(copied / row["file"]).float().mean() / 255
            assert float(row["bright"]) == pytest.approx(float(expected), rel=1e-5)
    assert guardlit("evaluate", "--out", copied, "--rescore") == 0  # what was measured first
    assert "scores: 0 computed" in capsys.readouterr().err
    assert scores(copied) == before


def test_an_interrupted_evaluation_is_resumed(
    evaluated: Path, trained: Path, tmp_path: Path, monkeypatch, capsys, handlers
):
    write, written = PictureFolder.write, []

    def interrupted(folder: PictureFolder, index: int, image: torch.Tensor) -> None:
        if len(written) == 34:  # within the second model
            raise KeyboardInterrupt
        written.append(index)
        write(folder, index, image)

    monkeypatch.setattr(PictureFolder, "write", interrupted)
    command = ("evaluate", *RUN, *GOLD, *TWO_IMAGES, *runs(trained), "--ckpt", "last", "--out", tmp_path)
    assert guardlit(*command) != 0
    assert "finished images and scores are kept" in capsys.readouterr().err
    monkeypatch.undo()
    kept = times(tmp_path)
    assert len(kept) == 34  # and no score yet
    assert guardlit(*command) == 0
    assert "images: 12 drawn, 40 in all" in capsys.readouterr().err  # 6 of the batch that was cut short again
    redrawn = {name for name, time in times(tmp_path).items() if name in kept and kept[name] != time}
    assert len(redrawn) == 6
    assert [metrics for _, metrics in _numbers(tmp_path)] == [metrics for _, metrics in _numbers(evaluated)[:2]]


def _numbers(out: Path) -> list[tuple[str, dict]]:
    return [(row["label"], row["metrics"]) for row in table(out)["models"]]


@pytest.fixture
def handlers() -> Iterator[None]:
    """Lightning leaves SIGINT ignored behind."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_corrupt_image_is_drawn_again(copied: Path, evaluated: Path, trained: Path, capsys):
    rows = scores(copied)["base"]
    cut, swapped = copied / rows[3]["file"], copied / rows[17]["file"]
    cut.write_bytes(cut.read_bytes()[:-40])
    swapped.write_bytes((copied / rows[0]["file"]).read_bytes())  # a whole PNG, but of another image
    before = times(copied)
    assert guardlit("evaluate", "--rescore", "--out", copied) == 2
    assert "2 of 20 images of 'base' are missing or corrupt, number 3 first" in capsys.readouterr().err
    assert again(trained, copied) == 0
    assert "images: 12 drawn" in capsys.readouterr().err  # batches 0-7 and 16-19
    changed = {name for name, time in times(copied).items() if before[name] != time} - {"scores.sqlite"}
    assert changed == {row["file"].rpartition("/")[2] for row in [*rows[:8], *rows[16:]]}
    assert _numbers(copied) == _numbers(evaluated)


def test_a_corrupt_score_is_computed_again(copied: Path, evaluated: Path, capsys):
    with sqlite3.connect(copied / "scores.sqlite") as database:
        keys = [key for (key,) in database.execute("SELECT key FROM scores ORDER BY key LIMIT 2")]
        database.execute("UPDATE scores SET value = value + 1 WHERE key = ?", keys[:1])
        database.execute("UPDATE scores SET value = 'much' WHERE key = ?", keys[1:])
    database.close()
    assert guardlit("evaluate", "--rescore", "--out", copied) == 0
    assert "scores: 2 computed" in capsys.readouterr().err
    for one, other in zip(_numbers(copied), _numbers(evaluated), strict=True):
        for metric, estimate in one[1].items():
            # to float32's rounding: they were scored in a smaller batch this time
            assert estimate == pytest.approx(other[1][metric], rel=1e-6, abs=1e-7)


def test_a_corrupt_cache_is_moved_away(copied: Path, evaluated: Path, capsys):
    file = copied / "scores.sqlite"
    file.write_bytes(b"not a database" + file.read_bytes()[14:])
    assert guardlit("evaluate", "--rescore", "--out", copied) == 0
    err = capsys.readouterr().err
    assert "scores.sqlite is corrupt" in err
    assert "scores: 240 computed" in err
    assert _numbers(copied) == _numbers(evaluated)


# what ends with one line ----------------------------------------------------------------------------------------------


def complaint(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    capsys.readouterr()
    assert guardlit("evaluate", *args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("guardlit ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_a_failed_gold_score_is_never_dropped(copied: Path, capsys):
    rows = scores(copied)["base"]
    failing = ("--gold.scorers.bright", "brightness.Brightness", "--gold.scorers.bright.fail", "seven")
    line = complaint(capsys, "--rescore", "--out", copied, *failing)
    assert "gold scorer 'bright' failed on 2 of 20 images of 'base', first for the prompt 'a handwritten seven'" in line
    assert rows[7]["file"] in line
    assert "and 4 more such failures" in line
    assert scores(copied)["base"] == rows  # the table that was there is left alone
    assert guardlit("evaluate", "--rescore", "--out", copied, *failing[:2]) == 0
    assert "scores: 6 computed" in capsys.readouterr().err  # seven, twice, of three different models


def test_a_base_that_cannot_divide_leaves_the_other_columns(copied: Path, capsys):
    column = ("--gold.scorers.jpeg", "JPEGCompressibility", "--gold.average", '["jpeg"]')  # minus kilobytes
    line = complaint(capsys, "--rescore", "--out", copied, *column)
    assert "no Average: composite: the base score of 'jpeg' must be a positive number, got -0.00" in line
    row = table(copied)["models"][0]
    assert "average" not in row["metrics"]
    assert row["metrics"]["jpeg"]["value"] < 0


WRONG = {
    "no such checkpoint": (["--ckpt", "nothing.ckpt"], "--ckpt nothing.ckpt does not exist"),
    "no weights": (["--ckpt", ROOT / "docs"], "docs holds no exported weights"),
    "not a checkpoint": (["--ckpt", ROOT / "README.md"], "README.md is corrupt ("),
    "a file of weights": (
        ["--ckpt", ROOT / "guardlit/assets/digits_scorers/gold.safetensors"],
        "not a tensor that a LoRA should contain",
    ),
    "labels": (["--ckpt", "last", "--label", "a", "b"], "2 --label for 1 --ckpt"),
    "twice": (["--ckpt", "last", "last", "--label", "a", "a"], "two rows would be called 'a'"),
    "prompts": (["--prompts", "nowhere.txt"], "no prompt file nowhere.txt"),
    "one image": (
        ["--images_per_prompt", 1],
        "'digitdiversity' compares the images of a prompt: images_per_prompt must",
    ),
    "no weights of a scorer": (
        ["--gold.scorers.digitgold.path", "/nowhere"],
        "/nowhere/gold.safetensors: cannot be read",
    ),
    "images": (["--images_per_prompt", 0], "images_per_prompt=0 must be at least 1"),
    "average": (
        ["--gold.average", '["hpsv2"]'],
        "gold.average: there is no scorer 'hpsv2'; there are digitprobability",
    ),
    "another model": (["--ckpt", "last", "--model.policy.lora.rank", 3], "the checkpoint was saved with lora ="),
    "another kind of weights": (
        ["--model.policy.lora", "null", "--ckpt", "last"],
        "the checkpoint was saved with lora =",
    ),
    "precision": (["--trainer.precision", "16-true"], "trainer.precision=16-true"),
    "rescore and checkpoints": (["--rescore", "--ckpt", "last"], "leave out --ckpt, --label and --base_steps"),
    "base steps above all": (["--ckpt", "last", "--base_steps", "11"], "at most num_inference_steps=10"),
    "negative base steps": (["--ckpt", "last", "--base_steps", "-1"], "base_steps=-1 must be at least 0"),
    "base steps twice": (["--ckpt", "last", "--base_steps", "2,2"], "--base_steps names 2 twice"),
    "base steps in words": (["--ckpt", "last", "--base_steps", "two"], "--base_steps"),
    "nothing to rescore": (["--rescore"], "--rescore needs the images of an earlier evaluation"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_gets_one_line_and_draws_nothing(mistake: str, trained: Path, tmp_path: Path, capsys):
    args, says = WRONG[mistake]
    assert says in complaint(capsys, *RUN, *GOLD, *runs(trained), "--out", tmp_path / "out", *args)
    assert not list(tmp_path.rglob("*.png"))


def test_without_scorers_the_line_says_what_is_missing(trained: Path, tmp_path: Path, capsys):
    line = complaint(capsys, *RUN, *runs(trained), "--out", tmp_path)
    assert "gold.scorers" in line


def test_a_prompt_that_cannot_be_scored_is_found_before_drawing(trained: Path, tmp_path: Path, capsys):
    (tmp_path / "prompts.txt").write_text("a handwritten seven\na cat\n")
    line = complaint(capsys, *RUN, *GOLD, *runs(trained), "--out", tmp_path, "--prompts", tmp_path / "prompts.txt")
    assert "gold scorer 'digitprobability' cannot score the prompt 'a cat': it names no digits" in line
    assert not list(tmp_path.rglob("*.png"))
