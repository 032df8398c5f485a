"""`docs/logged.md` lists what a run logs: no key that is not there, and none that never appears."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest
from image_folders import write_images
from runs import config, guardlit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from guardlit.training.logs.keys import documented, page

ROOT = Path(__file__).parents[3]
RATIO = {"raw": "raw_log_ratio", "normalized": "norm_log_ratio", "sample_weight": "sample_weight"}
ALL = [
    "TrainableEMA",
    {"class_path": "RatioDistribution", "init_args": {**RATIO, "per_step": True}},
    {
        "class_path": "GradientNorm",
        "init_args": {"sample_weight": "sample_weight", "parameters_every": 1, "per_step": True},
    },
    {"class_path": "KLFromBase", "init_args": {"per_step": True}},
    {"class_path": "GradientSpikes", "init_args": {"patience": 2}},
    {"class_path": "GoldScore", "init_args": {"scorers": ["brightness.Brightness"]}},
    "OverOptimizationStop",
    "DriftSentinels",
    {"class_path": "SampleGrid", "init_args": {"size": 32}},
    {
        "class_path": "PhaseTimer",
        "init_args": {"samples": "global_step", "flops_per_sample": 1.0, "peak_flops": 1.0},
    },
]
FEW = [{"class_path": "RatioDistribution", "init_args": RATIO}, {"class_path": "GradientNorm"}, *ALL[4:]]
TERMS = [
    {"scorer": {"class_path": "background.Background"}},
    {"scorer": {"class_path": "JPEGCompressibility"}, "weight": 0.5, "affine": {"shift": 0.1, "scale": 0.2}},
    {"scorer": {"class_path": "brightness.Colors"}, "weight": 0},
]
EVERYTHING = {
    "model__policy__init_args__weights_dtype": "bf16",
    "model__reward": {"class_path": "Composite", "init_args": {"terms": TERMS}},
    "model__objective": {"class_path": "FlowGRPO", "init_args": {"clip_range": "auto"}},
    "model__kl": {"weight": 0.01, "gate": {"proxy": "jpeg_compressibility"}, "renew_every": 1},
    "model__advantage": {"diversity": "colors"},
    "data__rollout_batch": 2,
}
PER_STEP = {"class_path": "FlowGRPO", "init_args": {"clip_range": "auto_per_step"}}


def callbacks(short: list[object]) -> list[object]:
    """Callbacks as a configuration has them."""
    full = [{"class_path": name} if isinstance(name, str) else dict(name) for name in short]
    for callback in full:
        callback["class_path"] = f"guardlit_callbacks.{callback['class_path']}"
    return full


def run(folder: Path, model: Path, **changes: object) -> EventAccumulator:
    """What TensorBoard gets from a run of two rounds."""
    settings = {"trainer__max_epochs": 2, "trainer__check_val_every_n_epoch": 1, "data__val_images_per_prompt": 2}
    assert guardlit("fit", "--config", config(folder, model, **settings, **changes)) == 0
    events = EventAccumulator(str(folder / "runs/version_0"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_the_page_is_made_from_the_code():
    assert (ROOT / "docs/logged.md").read_text(encoding="utf-8") == page()


def test_every_key_has_a_unit_and_a_moment():
    keys = documented()
    assert len({key.text for key in keys}) == len(keys)
    assert all(len(key.unit) > 1 and key.when in ("update", "round", "validation") for key in keys)


def test_a_run_logs_every_documented_key_and_no_other(sd3_folder: Path, tmp_path: Path):
    rollback = {"class_path": "guardlit.training.recovery.rollback.Rollback"}
    images = {"weight": 0.1, "images": str(write_images(tmp_path / "images"))}
    everything = {**EVERYTHING, "trainer__callbacks": [*callbacks(ALL), rollback], "model__data_loss": images}
    (tmp_path / "steps").mkdir()
    both = run(tmp_path, sd3_folder, **everything), run(tmp_path / "steps", sd3_folder, model__objective=PER_STEP)
    logged = {name: events for events in both for name in events.Tags()["scalars"] if name != "epoch"}
    keys = documented()
    assert sorted(name for name in logged if not any(key.pattern.fullmatch(name) for key in keys)) == []
    assert [key.text for key in keys if not any(key.pattern.fullmatch(name) for name in logged)] == []
    for key in keys:  # at the number of updates made: 8 in two rounds, none before training
        steps = {event.step for name in logged if key.pattern.fullmatch(name) for event in logged[name].Scalars(name)}
        first = {"update": 1, "round": 4, "validation": 0}[key.when]
        late = key.text in (
            "gradient/spike_ratio",
            "train/clip_range",
            "train/clip_range/tTT",
        )  # not before the second update
        assert max(steps) == 8, key.text
        assert late or min(steps) == first, key.text
        assert late or key.when != "update" or steps == set(range(1, 9)), key.text


def test_a_run_shows_few_keys_and_opens_on_the_reward(sd3_folder: Path, tmp_path: Path):
    events = run(tmp_path, sd3_folder, trainer__callbacks=callbacks(FEW))
    names = sorted(events.Tags()["scalars"])
    assert len(names) <= 63
    assert names[0] == "average_reward/jpeg_compressibility"  # TensorBoard sorts by name
    series = {name: [event.value for event in events.Scalars(name)] for name in names if name.startswith("ratio/")}
    assert [pair for pair in combinations(series, 2) if series[pair[0]] == series[pair[1]]] == []
    assert not any(re.search(r"/t\d\d$", name) for name in names)
    assert len(events.Tags()["histograms"]) <= 4


@pytest.mark.parametrize(("short", "expected"), [(FEW, 0), (ALL, 5)], ids=["few", "per step"])
def test_tensorboard_has_a_layout_of_charts_that_all_show_something(
    short: list[object], expected: int, sd3_folder: Path, tmp_path: Path
):
    from tensorboard.plugins.custom_scalar import layout_pb2

    events = run(tmp_path, sd3_folder, trainer__callbacks=callbacks(short))
    names = events.Tags()["scalars"]
    (stored,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(stored.tensor_proto.string_val[0])
    titles = [category.title for category in layout.category]
    assert titles[:5] == ["proxy and gold", "ratio", "gradient", "drift", "time"]
    assert sum(len(category.chart) for category in layout.category[5:]) == expected
    for chart in (chart for category in layout.category for chart in category.chart):
        margins = [getattr(series, end) for series in chart.margin.series for end in ("value", "lower", "upper")]
        assert set(margins) <= set(names), chart.title
        assert margins or any(re.match(tag, name) for tag in chart.multiline.tag for name in names), chart.title
