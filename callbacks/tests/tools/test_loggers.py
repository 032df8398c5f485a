"""Full runs with the real loggers, read back from their files."""

import csv
import json
import re
from importlib import import_module

import numpy as np
import pytest
from full_run import all_callbacks, fit
from guardlit_callbacks.tools.lightning import Callback
from PIL import Image
from wandb_files import QUIET, history, settings

LOGGERS = import_module(Callback.__module__.removesuffix(".callbacks.callback") + ".loggers")
ROUNDS, UPDATES = 5, 15  # until the over-optimization stops it
FIGURES = ("ratio/figure", "gradient/figure", "gold/figure", "gold/frontier", "samples/grid", "samples/film_strip")
HISTOGRAMS = [f"ratio/{kind}/histogram/t{t:02d}" for kind in ("log_ratio", "normalized") for t in range(3)]
HISTOGRAMS += [f"gradient/velocity/histogram/t{t:02d}" for t in range(3)]
CHARTED = ("ratio/log_ratio", "ratio/normalized", "gradient/velocity", "gradient/parameters")
CHARTS = tuple(f"{values}/by_step" for values in CHARTED)
SCALARS = ("ratio/log_ratio/mean/t02", "ratio/clip_fraction")
SCALARS += ("gradient/velocity/max_over_min", "gradient/parameters/t00")
SCALARS += ("gold/bright", "gold/average_low", "drift/edge_density_ratio", "over_optimization/count", "time/mfu")
SCALARS += ("kl/from_base", "kl/sqrt_from_base", "kl/from_base/t01")


@pytest.fixture
def run(make_trainer, monkeypatch, tmp_path):
    """A run of all callbacks with a logger; and what a recorder got, by key."""

    def train(logger, recorder, **options):
        trainer = fit(make_trainer, tmp_path, all_callbacks(**options), monkeypatch, logger=[logger, recorder])
        assert trainer.global_step == UPDATES
        return {key: [value for _, value in recorder.values(key)] for key in sorted(recorder.keys())}

    return train


def pictures(folder):
    """Of the run's folder: every callback has left its own."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert {"ratio/round_00001.png", "gradient/round_00001.png", "gold.png", "samples/film_strip.png"} <= found


def test_tensorboard_has_scalars_histograms_and_images(run, recorder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = run(LOGGERS.TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False), recorder)
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    events.Reload()
    assert set(seen) <= set(events.Tags()["scalars"])
    for key, values in seen.items():
        assert [event.value for event in events.Scalars(key)] == pytest.approx(values, rel=1e-6), key
    assert sorted(events.Tags()["histograms"]) == sorted(HISTOGRAMS)
    assert all(len(events.Histograms(key)) == ROUNDS for key in HISTOGRAMS)
    assert sorted(events.Tags()["images"]) == sorted(FIGURES)
    pictures(tmp_path / "run")


PLACEHOLDERS = {
    "KIND": "(log_ratio|raw|normalized)",
    "SIGN": "(positive|negative)",
    "SIDE": "(above|below)",
    "NAME": r"\w+",
    "PHASE": "(data|update|validation)",
    "TT": r"\d\d",
}


def test_docstrings_list_every_logged_key_and_no_other(run, recorder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = set()
    for version, per_step in {"few": False, "all": True}.items():
        logger = LOGGERS.TensorBoardLogger(tmp_path, name="", version=version, default_hp_metric=False)
        run(logger, recorder, per_step=per_step)
        events = EventAccumulator(str(tmp_path / version))
        events.Reload()
        here = {key for kind in ("scalars", "histograms", "images") for key in events.Tags()[kind]} - {"epoch"}
        assert per_step == any(re.search(r"/t\d\d$", key) for key in here)  # few keys, unless all are asked for
        logged |= here | set(CHARTS)  # which only W&B gets
    documented = []
    for callback in all_callbacks():
        keys = [key for key in re.findall(r"`([\w/]+)`", type(callback).__doc__) if "/" in key]
        assert keys or "Logged keys: none." in type(callback).__doc__
        documented += keys
        for row in re.findall(r"^ *\| `.*$", type(callback).__doc__, re.MULTILINE):
            *_, unit, _ = row.split("|")
            assert len(unit.strip()) > 1, row
    patterns = {key: re.sub("|".join(PLACEHOLDERS), lambda found: PLACEHOLDERS[found[0]], key) for key in documented}
    for key, pattern in patterns.items():
        assert any(re.fullmatch(pattern, other) for other in logged), f"{key} is documented and not logged"
    for key in logged:
        assert any(re.fullmatch(pattern, key) for pattern in patterns.values()), f"{key} is logged and not documented"


def test_csv_has_every_scalar(run, recorder, tmp_path):
    seen = run(LOGGERS.CSVLogger(tmp_path, name="", version="run"), recorder)
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").open()))
    assert set(SCALARS) <= set(seen) <= set(rows[0])
    for key, values in seen.items():
        assert [float(row[key]) for row in rows if row[key]] == pytest.approx(values, rel=1e-6), key
    pictures(tmp_path / "run")


def test_wandb_has_scalars_histograms_images_and_charts(run, recorder, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    wandb.finish()  # a run that another test has left would be continued
    own = wandb.Settings(x_disable_stats=True, x_disable_meta=True)
    logger = LOGGERS.WandbLogger(project="toy", save_dir=tmp_path, offline=True, settings=own)
    seen = run(logger, recorder)
    logger.experiment.finish()
    wandb.teardown()  # or its process may still be writing
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    logged = history(log)
    assert set(SCALARS) <= set(seen)
    for key in seen:
        steps, values = zip(*recorder.values(key), strict=True)
        assert [step for step, _ in logged[key]] == list(steps), key
        assert [value for _, value in logged[key]] == pytest.approx(list(values), rel=1e-6), key
    for key in HISTOGRAMS:
        assert [(step, value["_type"]) for step, value in logged[key]] == [(3 * r, "histogram") for r in range(1, 6)]
    rounds = [np.load(path) for path in sorted(tmp_path.rglob("ratio/round_*.npz"))]
    for (_, value), arrays in zip(logged["ratio/log_ratio/histogram/t02"], rounds, strict=True):
        values = arrays["log_ratio"][arrays["step"] == 2]
        assert sum(value["values"]) == len(values)
        assert (value["bins"][0], value["bins"][-1]) == pytest.approx((values.min(), values.max()))
    for key in FIGURES:
        (*_, (_, last)) = logged[key]
        shown = Image.open(log.parent / "files" / last["filenames"][0])
        assert (shown.width, shown.height) == (last["width"], last["height"])
        assert np.asarray(shown.convert("L")).std() > 10
    check_charts(log, logged, rounds[-1])
    (folder,) = {path.parent.parent for path in tmp_path.glob("toy/*/samples/film_strip.png")}
    assert folder == tmp_path / "toy" / logger.version  # each run has its own
    pictures(folder)


def check_charts(log, logged, arrays):
    """The charts over the denoising steps: their tables, and the settings by which W&B draws them."""
    shown = settings(log)
    for key in CHARTS:
        chart = shown["_wandb", "visualize", key]
        assert chart["panel_config"]["panelDefId"] == "wandb/lineseries/v0"
        assert "by denoising step" in chart["panel_config"]["stringSettings"]["title"]
        assert [step for step, _ in logged[f"{key}_table"]] == [3, 15]  # with the figures
    (*_, (_, table)) = logged["ratio/log_ratio/by_step_table"]
    rows = json.loads((log.parent / "files" / table["path"]).read_text())["data"]
    for t in range(3):
        values = arrays["log_ratio"][arrays["step"] == t]
        found = {name: value for step, name, value in rows if step == t}
        assert found == pytest.approx({"mean": values.mean(), "std": values.std()})
