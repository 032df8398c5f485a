"""The frontier that `GoldScore` logs while a run goes through its validations."""

from importlib import import_module

import numpy as np
import pytest
import torch
from guardlit_callbacks import GoldScore
from guardlit_callbacks.bases.validation import log_validation
from guardlit_callbacks.figures import run_frontier_figure
from guardlit_callbacks.tools.lightning import Callback, LightningModule

CHECKPOINTS = import_module(Callback.__module__.rsplit(".", 1)[0])
STEPS = [2, 4, 6, 8]


class Red:
    name = "red"

    def setup(self, device):
        pass

    def score(self, request):
        return request.images[:, 0].float().mean((1, 2)).tolist()


class Painter(LightningModule):
    """Red rises to step 4 and then falls; the reward always rises."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def validation_step(self, rows, batch_idx):
        step = self.global_step
        images = torch.full((len(rows), 3, 4, 4), 100 + 10 * min(step, 8 - step), dtype=torch.uint8)
        reward = torch.full((len(rows),), 0.5 + 0.01 * step)
        return {"images": images, "prompts": [f"prompt {i}" for i in rows.tolist()], "reward": reward}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Distance(Callback):
    """Logs a distance after `GoldScore` has logged its scores."""

    def on_validation_epoch_end(self, trainer, pl_module):
        log_validation(trainer, pl_module, {"kl/sqrt_from_base": 0.1 * trainer.global_step})


@pytest.fixture
def drawn(monkeypatch):
    """The curves of the figures that were drawn."""
    curves = []
    monkeypatch.setattr(
        "guardlit_callbacks.gold_frontier.run_frontier_figure",
        lambda curve: curves.append(curve) or run_frontier_figure(curve),
    )
    return curves


@pytest.fixture
def pictures(recorder):
    """A logger that takes images, and the steps of those it got, by key."""
    recorder.images = {}
    recorder.log_image = lambda key, images, step: recorder.images.setdefault(key, []).append(step)
    return recorder


def fit(make_trainer, *callbacks, ckpt_path=None, **options):
    trainer = make_trainer(*callbacks, **{"max_epochs": 4, "num_sanity_val_steps": -1, **options})
    train, val = (torch.utils.data.DataLoader(torch.arange(2), batch_size=1) for _ in range(2))
    trainer.fit(Painter(), train, val, ckpt_path=ckpt_path, **({"weights_only": True} if ckpt_path else {}))
    return trainer


def test_a_figure_is_logged_at_each_validation_from_the_second_on(make_trainer, pictures, drawn):
    fit(make_trainer, GoldScore([Red()]), Distance(), logger=pictures)
    assert pictures.images["gold/frontier"] == STEPS
    last = drawn[-1]
    assert last.step.tolist() == [0, *STEPS]
    np.testing.assert_allclose(last.axes["proxy"], 0.5 + 0.01 * last.step[None], rtol=1e-6)
    np.testing.assert_allclose(last.axes["sqrt_kl"], 0.1 * last.step[None], rtol=1e-6)
    np.testing.assert_allclose(last.gold[0], [1.0, 1.2, 1.4, 1.2, 1.0])
    assert last.best == 2


def test_without_a_distance_there_is_one_panel(make_trainer, pictures, drawn):
    fit(make_trainer, GoldScore([Red()]), logger=pictures)
    assert set(drawn[-1].axes) == {"proxy"}
    drawn.clear()
    fit(make_trainer, GoldScore([Red()], distance=None), Distance(), logger=pictures)
    assert set(drawn[-1].axes) == {"proxy"}


def test_without_proxy_and_distance_nothing_is_drawn(make_trainer, pictures, drawn):
    fit(make_trainer, GoldScore([Red()], proxy=None), logger=pictures)
    assert not drawn
    assert "gold/frontier" not in pictures.images


def test_nothing_is_drawn_for_loggers_that_take_no_figures(make_trainer, recorder, drawn):
    gold = GoldScore([Red()])
    fit(make_trainer, gold, logger=recorder)
    assert len(gold.history) == 5
    assert not drawn


def test_a_resumed_run_shows_all_of_its_path(make_trainer, pictures, drawn, tmp_path):
    save = CHECKPOINTS.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_epochs=1)
    fit(make_trainer, GoldScore([Red()]), Distance(), save, logger=pictures, enable_checkpointing=True)
    expected = drawn[-1]
    drawn.clear()
    fit(make_trainer, GoldScore([Red()]), Distance(), logger=pictures, ckpt_path=tmp_path / "step=4.ckpt")
    assert [curve.step[-1] for curve in drawn] == [4, 6, 8]  # Lightning validates before it resumes
    for axis, values in expected.axes.items():
        np.testing.assert_array_equal(drawn[-1].axes[axis], values)


def test_a_checkpoint_of_before_resumes_without_the_distances_it_lacks(make_trainer, pictures, drawn, tmp_path):
    save = CHECKPOINTS.ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_epochs=1)
    fit(make_trainer, GoldScore([Red()]), Distance(), save, logger=pictures, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    del checkpoint["callbacks"]["GoldScore"]["distances"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    drawn.clear()
    fit(make_trainer, GoldScore([Red()]), Distance(), logger=pictures, ckpt_path=tmp_path / "old.ckpt")
    np.testing.assert_allclose(drawn[-1].axes["sqrt_kl"], [[np.nan, np.nan, 0.4, 0.6, 0.8]], rtol=1e-6)
