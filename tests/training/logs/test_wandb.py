"""W&B gets what TensorBoard gets: an offline run, read back from its file; and one line where it cannot start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from forked import forked
from guardlit_callbacks.tools.run_files import read_table
from PIL import Image
from runs import config, guardlit, newest
from wandb_files import QUIET, history, settings

wandb = pytest.importorskip("wandb", reason="wandb is not installed")

CALLBACKS = [
    {"class_path": "guardlit_callbacks.TrainableEMA"},
    {"class_path": "guardlit_callbacks.RatioDistribution", "init_args": {"raw": "raw_log_ratio"}},
    {"class_path": "guardlit_callbacks.GradientNorm", "init_args": {"parameters_every": 1}},
    {"class_path": "guardlit_callbacks.GoldScore", "init_args": {"scorers": ["brightness.Brightness"]}},
    {"class_path": "guardlit_callbacks.SampleGrid", "init_args": {"size": 32}},
]
HISTOGRAMS = ("ratio/log_ratio/histogram", "ratio/raw/histogram", "gradient/velocity/histogram")
IMAGES = ("samples/grid", "samples/film_strip", "ratio/figure", "gradient/figure", "gold/figure", "gold/frontier")
BY_STEP = ("ratio/log_ratio", "ratio/raw", "gradient/velocity", "gradient/parameters")
LINES = {
    "proxy_and_gold/proxy_reward": ["average_reward/jpeg_compressibility", "val/reward"],
    "proxy_and_gold/gold_average_1_base": ["gold/average", "gold/average_low", "gold/average_high"],
    "proxy_and_gold/gold_scores": ["gold/brightness"],
    "ratio/clip_fraction": ["train/clip_above", "train/clip_below", "train/clip_off_policy", "ratio/clip_fraction"],
    "gradient/largest_over_smallest_step": ["gradient/velocity/max_over_min", "gradient/parameters/max_over_min"],
}
"""Custom charts of TensorBoard's layout, and the keys of their lines."""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No terminal and no account; W&B is at its beginning again after a test."""
    for name, value in {**QUIET, "WANDB_CONFIG_DIR": str(tmp_path), "NETRC": str(tmp_path / "netrc")}.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):  # the second is set by Lightning
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield
    finish()


def finish() -> None:
    """End W&B's run and its process, which may still be writing."""
    wandb.finish()
    wandb.teardown()


def run(folder: Path, model: Path, *options: object, **changes: object) -> Path:
    """The folder of a run of two rounds that logs to W&B without a network."""
    path = config(folder, model, **{"trainer__max_epochs": 2, "trainer__check_val_every_n_epoch": 1, **changes})
    logger = ("--trainer.logger", "wandb", "--trainer.logger.offline", "true")
    assert guardlit("fit", "--config", path, *logger, *options) == 0
    finish()
    return newest(folder / "runs", "version_*/metrics.csv").parent


def log(folder: Path) -> Path:
    """The W&B file in a run's folder."""
    (found,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return found


def test_an_offline_run_holds_everything(sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = run(tmp_path, sd3_folder, trainer__callbacks=CALLBACKS)
    assert not Path("wandb").exists()
    logged, table = history(log(folder)), read_table(folder / "metrics.csv")
    for key in set(table) - {"step", "epoch"}:
        at = ~np.isnan(table[key])
        expected = list(zip(table["step"][at].tolist(), table[key][at].tolist(), strict=True))
        assert [step for step, _ in logged[key]] == [step for step, _ in expected], key
        assert [value for _, value in logged[key]] == pytest.approx([value for _, value in expected]), key
    for key in HISTOGRAMS:
        assert [(step, value["_type"], sum(value["values"]) > 0) for step, value in logged[key]] == [
            (4, "histogram", True),
            (8, "histogram", True),
        ]
    for key in IMAGES:
        for step, value in logged[key]:
            assert step in (0, 4, 8)
            assert np.asarray(Image.open(log(folder).parent / "files" / value["filenames"][0]).convert("L")).std() > 5
    check_charts(folder, logged, table)
    found = settings(log(folder))
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert {name: found[name] for name in ("seed_everything", "model", "data")} == {
        name: saved[name] for name in ("seed_everything", "model", "data")
    }
    assert found["summary"]["learning rate"] == 1e-3


def check_charts(folder: Path, logged: dict[str, Any], table: dict[str, Any]) -> None:
    """The custom charts: over the denoising steps, and those of TensorBoard's layout over the whole run."""
    shown = settings(log(folder))
    for key in [*(f"{values}/by_step" for values in BY_STEP), *(f"charts/{name}" for name in LINES)]:
        assert shown["_wandb", "visualize", key]["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
        assert logged[f"{key}_table"][-1][0] == 8
    for name, keys in LINES.items():
        path = logged[f"charts/{name}_table"][-1][1]["path"]
        rows = json.loads((log(folder).parent / "files" / path).read_text())["data"]
        assert {line for _, line, _ in rows} == set(keys)
        for key in keys:
            at = np.isfinite(table[key])
            assert [x for x, line, _ in rows if line == key] == table["step"][at].tolist(), key
            assert [y for _, line, y in rows if line == key] == pytest.approx(table[key][at].tolist()), key


def test_a_resumed_run_is_a_new_one_unless_its_id_is_given(sd3_folder: Path, tmp_path: Path):
    first = run(tmp_path, sd3_folder, trainer__max_epochs=1)
    own = run(tmp_path, sd3_folder, "--ckpt_path", "last")
    assert log(first).name != log(own).name
    same = ("--trainer.logger.id", "abc", "--trainer.logger.resume", "allow")
    part = run(tmp_path, sd3_folder, *same, trainer__max_epochs=1)
    rest = run(tmp_path, sd3_folder, *same, "--ckpt_path", newest(part, "round_00001.ckpt"))
    assert log(part).name == log(rest).name == "run-abc.wandb"
    assert [[step for step, _ in history(log(each))["round"]] for each in (part, rest)] == [[4], [8]]


def test_a_logger_with_a_folder_of_its_own_writes_there(sd3_folder: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    folder = run(tmp_path, sd3_folder, "--trainer.logger.save_dir", tmp_path / "mine", trainer__max_epochs=1)
    assert not (folder / "wandb").exists()
    assert log(tmp_path / "mine")


def test_without_a_key_every_rank_says_one_line_before_a_model_loads(tmp_path: Path, sd3_folder: Path):
    path = config(tmp_path, sd3_folder, trainer__logger="wandb", trainer__devices=2)
    processes = forked(tmp_path, "fit", "--config", path)
    assert processes.wait() == [2, 2]
    for rank in (0, 1):
        assert processes.last(rank).startswith("guardlit fit: error: trainer.logger: W&B has no API key here: run ")
        assert "Traceback" not in processes.logs[rank].read_text()
    assert list((tmp_path / "runs").glob("*")) == []


def test_a_key_that_is_none_is_one_line(
    sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, trainer__logger="wandb")) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("guardlit fit: error: trainer.logger: W&B: WANDB_API_KEY invalid: ")
