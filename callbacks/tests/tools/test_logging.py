import gc
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from guardlit_callbacks.tools.folders import run_dir
from guardlit_callbacks.tools.logging import (
    MOST_POINTS,
    figure_to_array,
    log_chart,
    log_figure,
    log_histogram,
    log_image,
    log_layout_charts,
    log_scalars,
    log_settings,
)
from guardlit_callbacks.tools.outputs import read_output
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from PIL import Image

PICTURE = np.zeros((4, 6, 3), np.uint8)


@pytest.fixture
def wandb_logger(recorder, monkeypatch):
    """Stands for Lightning's WandbLogger where W&B is not installed: the same methods and name."""
    plot = SimpleNamespace(line_series=lambda *chart: chart)
    fake = SimpleNamespace(Histogram=lambda values: ("histogram", values.tolist()), plot=plot)
    monkeypatch.setitem(sys.modules, "wandb", fake)

    class WandbLogger(type(recorder)):
        def log_image(self, key, images, step=None):
            self.calls.append((step, {key: [image.shape for image in images]}))

    return WandbLogger()


def test_wandb_gets_images_and_histograms(make_trainer, wandb_logger):
    trainer = make_trainer(logger=wandb_logger)
    log_image(trainer, "a", PICTURE, 3)
    log_histogram(trainer, "b", np.array([1.0, 2.0]), 4)
    log_histogram(trainer, "empty", np.array([]), 4)
    assert wandb_logger.calls == [(3, {"a": [(4, 6, 3)]}), (4, {"b": ("histogram", [1.0, 2.0])})]


def test_wandb_gets_the_charts_of_a_layout(make_trainer, wandb_logger):
    layout = {
        "gold, all": {
            "average": ["Margin", ["gold", "low", "high"]],
            "scores": ["Multiline", [r"^score/.*"]],
            "absent": ["Multiline", [r"^nothing$"]],
        }
    }
    empty = float("nan")
    table = {"step": [0, 1, 1], "gold": [1, empty, 2], "low": [0, 0, 0], "high": [3, 3, 3], "score/a": [5, 6, empty]}
    columns = {name: np.array(values, float) for name, values in table.items()}
    log_layout_charts(make_trainer(logger=wandb_logger), layout, columns, 7)
    average = ([[0, 1], [0, 1], [0, 1]], [[1, 2], [0, 0], [3, 3]], ["gold", "low", "high"], "average", "step")
    scores = ([[0, 1]], [[5, 6]], ["score/a"], "scores", "step")
    assert wandb_logger.calls == [(7, {"charts/gold_all/average": average}), (7, {"charts/gold_all/scores": scores})]


def test_a_chart_has_no_more_points_than_are_shown(make_trainer, wandb_logger):
    curves = {name: {step: 1.0 for step in range(9000)} for name in "ab"}
    log_chart(make_trainer(logger=wandb_logger), "c", curves, "title", 1)
    ((_, logged),) = wandb_logger.calls
    xs, *_ = logged["c"]
    assert [x[:2] for x in xs] == [[0, 2], [0, 2]]
    assert sum(map(len, xs)) <= MOST_POINTS


def test_other_loggers_get_all_settings(make_trainer, wandb_logger, monkeypatch):
    given = []
    monkeypatch.setattr(type(wandb_logger), "log_hyperparams", lambda self, settings: given.append(settings))
    log_settings(make_trainer(logger=wandb_logger), {"lr": 0.1}, ["loss"], everything={"model": {"width": 3}})
    assert given == [{"summary": {"lr": 0.1}, "model": {"width": 3}}]


def test_csv_gets_scalars_and_no_images(make_trainer, lightning_root, tmp_path):
    csv = import_module(f"{lightning_root}.loggers").CSVLogger(tmp_path)
    trainer = make_trainer(logger=csv)
    log_image(trainer, "a", PICTURE, 3)
    log_histogram(trainer, "b", np.array([1.0]), 3)
    log_scalars(trainer, {"c": 0.5}, 3)
    csv.save()
    assert (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().split() == ["c,step", "0.5,3"]
    assert run_dir(trainer) == tmp_path / "lightning_logs/version_0"


def test_other_ranks_write_nothing(make_trainer, wandb_logger, monkeypatch):
    trainer = make_trainer(logger=wandb_logger)
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    log_image(trainer, "a", PICTURE, 3)
    log_histogram(trainer, "b", np.array([1.0]), 3)
    log_scalars(trainer, {"c": 0.5}, 3)
    assert wandb_logger.calls == []


def test_figure_is_logged_and_saved(make_trainer, wandb_logger, tmp_path):
    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([0, 1], [0, 1])
    log_figure(make_trainer(logger=wandb_logger), "figure", figure, 5, tmp_path / "new" / "figure.png")
    assert wandb_logger.calls == [(5, {"figure": [(50, 100, 3)]})]
    saved = np.asarray(Image.open(tmp_path / "new" / "figure.png"))
    assert np.array_equal(saved, figure_to_array(figure))
    assert saved.min() < 100 < saved.max()


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ({}, "no output 'x': the dictionary that the step returned is empty; .* int\\(key=...\\)"),
        ({"loss": 1, "y": 2}, "has only 'loss', 'y'"),
        (None, "the step returned NoneType, not a dictionary"),
        ({"x": [1.0]}, "the output 'x' is a list, not a tensor"),
    ],
)
def test_read_output_says_what_is_missing(outputs, says):
    with pytest.raises(Exception, match=says) as error:
        read_output(outputs, "x", 0, "key")
    assert type(error.value).__name__ == "MisconfigurationException"
    assert "\n" not in str(error.value)


def test_a_rendered_figure_holds_no_pixels_and_can_be_rendered_again(tmp_path):
    figure = Figure(figsize=(3, 2))
    figure.subplots().set_title("a title, which keeps the renderer")
    first = figure_to_array(figure)
    of_mine = [r for r in gc.get_referents(figure.axes[0].title) if isinstance(r, dict)]
    renderers = [r for held in of_mine for r in held.values() if isinstance(r, RendererAgg)]
    assert not any(hasattr(renderer, "_renderer") for renderer in renderers)
    assert np.array_equal(figure_to_array(figure), first)
    figure.savefig(tmp_path / "again.png", dpi=figure.dpi)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "again.png"))[..., :3], first)
