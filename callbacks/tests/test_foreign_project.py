"""Every callback in a Lightning project of another kind, under automatic and manual optimization."""

from importlib import import_module

import numpy as np
import pytest
import torch
from foreign_project import LIMIT, Manual, Sketcher, instruments, norm, prompts, spikes, transitions
from guardlit_callbacks import GradientNorm, GradientSpikes, RatioDistribution
from guardlit_callbacks.tools.lightning import Callback, MisconfigurationException

LOGGERS = import_module(Callback.__module__.rsplit(".", 2)[0] + ".loggers")


def train(make_trainer, folder, module, callbacks, **options):
    logger = LOGGERS.CSVLogger(folder, name="", version="")
    trainer = make_trainer(*callbacks, logger=logger, **{"max_epochs": 2, "num_sanity_val_steps": -1, **options})
    trainer.fit(module, transitions(), prompts())
    return trainer


def logged(folder):
    """Each key's last value."""
    import csv

    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return {key: float(value) for row in rows for key, value in row.items() if value}


def arrays(folder, name, round_index=0):
    return dict(np.load(sorted((folder / name).glob("*.npz"))[round_index]))


BEFORE = {"gradient/norm_before_clipping", "gradient/clipped"}


@pytest.fixture
def both(make_trainer, tmp_path):
    """The same training, automatic and by hand."""
    runs = {}
    for name, module, options in (
        ("automatic", Sketcher(), {"gradient_clip_val": LIMIT}),
        ("manual", Manual(), {}),
        ("at_once", Manual(zero_at_once=True), {}),
    ):
        runs[name] = (module, train(make_trainer, tmp_path / name, module, instruments(), **options))
    return tmp_path, runs


def test_training_by_hand_logs_what_automatic_training_logs(both):
    folder, runs = both
    one = logged(folder / "automatic")
    assert {
        "gradient/parameters/max_over_min",
        "ratio/clip_fraction",
        "gold/variety",
        "drift/diversity",
        "kl/sqrt_from_base",
        *BEFORE,
    } <= one.keys()
    for name in ("manual", "at_once"):
        assert torch.equal(runs[name][0].layer.weight, runs["automatic"][0].layer.weight)
        other = logged(folder / name)
        assert one.keys() - other.keys() == BEFORE
        measured = {key for key in one.keys() - BEFORE if not key.startswith("time/")}
        assert {k: other[k] for k in measured} == pytest.approx({k: one[k] for k in measured}, rel=1e-5, abs=1e-7)
        for kind in ("ratio", "gradient"):
            for index in (0, 1):
                a, b = arrays(folder / "automatic", kind, index), arrays(folder / name, kind, index)
                for column in a.keys() - {"norm_before"}:
                    np.testing.assert_allclose(a[column], b[column], rtol=1e-5, atol=1e-8)


def test_every_file_is_written(both):
    folder, _ = both
    for name in ("automatic", "manual"):
        written = {path.relative_to(folder / name).as_posix() for path in (folder / name).rglob("*")}
        assert {"gold.csv", "gold.png", "kl.csv", "samples/film_strip.png", "ratio/round_00001.npz"} <= written


@pytest.mark.parametrize("zero_at_once", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_norms_by_hand_equal_autograds(make_trainer, tmp_path, accumulate, zero_at_once):
    module = Manual(accumulate, zero_at_once)
    train(make_trainer, tmp_path, module, [GradientNorm(parameters_every=1)], max_epochs=1)
    written = arrays(tmp_path, "gradient")
    np.testing.assert_allclose(written["parameters"], [norm(gradients) for gradients in module.gradients], rtol=1e-4)
    np.testing.assert_allclose(written["norm_after"], module.norms, rtol=1e-5)
    assert len(written["norm_before"]) == 0
    assert max(module.norms) == pytest.approx(LIMIT, rel=1e-4)


class Knows(Manual):
    """A module that gives the norm before it clips."""

    def training_step(self, batch, batch_idx):
        outputs = super().training_step(batch, batch_idx)
        return outputs

    def gradient_norm(self):
        return torch.tensor(norm(self.gradients[-1]))


def test_a_module_that_knows_the_norm_before_clipping_has_everything(make_trainer, tmp_path):
    module = Knows()
    train(make_trainer, tmp_path, module, [*instruments(), spikes()])
    values = logged(tmp_path)
    assert values.keys() >= {*BEFORE, "gradient/spikes"}
    norms = [norm(gradients) for gradients in module.gradients]
    np.testing.assert_allclose(arrays(tmp_path, "gradient")["norm_before"], norms[: len(norms) // 2], rtol=1e-5)
    assert values["gradient/clipped"] == pytest.approx(np.mean(np.array(norms[len(norms) // 2 :]) > LIMIT))


def test_spikes_need_the_norm_before_clipping(make_trainer, tmp_path):
    train(make_trainer, tmp_path / "automatic", Sketcher(), [spikes()])
    with pytest.raises(MisconfigurationException, match=r"under manual optimization .* gradient_norm\(\)"):
        train(make_trainer, tmp_path / "manual", Manual(), [spikes()])


class TwoPasses(Manual):
    """Two backward passes, or two steps, in a batch."""

    def __init__(self, steps=1):
        super().__init__()
        self.steps = steps

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for _ in range(self.steps):
            for _ in range(2 // self.steps):
                loss, outputs = self.loss_and_outputs(batch)
                self.manual_backward(loss)
            optimizer.step()
        return outputs

    def gradient_norm(self):
        return torch.ones(())


def test_what_cannot_be_told_apart_is_refused(make_trainer, tmp_path):
    with pytest.raises(MisconfigurationException, match="needs one backward pass per training_step, found 2"):
        train(make_trainer, tmp_path, TwoPasses(), [GradientNorm(parameters_every=1)])
    train(make_trainer, tmp_path, TwoPasses(), [GradientNorm()])
    with pytest.raises(MisconfigurationException, match="training_step makes several optimizer steps"):
        train(make_trainer, tmp_path, TwoPasses(steps=2), [spikes()])


class TwoOptimizers(Manual):
    def configure_optimizers(self):
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in self.layer.parameters()]


@pytest.mark.parametrize("callback", [GradientNorm(), GradientSpikes()])
def test_gradients_of_several_optimizers_are_not_mixed(make_trainer, tmp_path, callback):
    line = f"{type(callback).__name__}: the module has 2 optimizers, and their gradients would be mixed"
    with pytest.raises(MisconfigurationException, match=line):
        train(make_trainer, tmp_path, TwoOptimizers(), [callback])


class Skips(Sketcher):
    """Skips its second batch by returning None, as Lightning allows."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*training_step.* returned .None")
def test_a_skipped_batch_has_no_samples(make_trainer, tmp_path):
    train(make_trainer, tmp_path, Skips(), [*instruments(), spikes()], max_epochs=1)
    assert sorted(set(arrays(tmp_path, "ratio")["step"])) == [0, 1, 2, 3]
    assert len(arrays(tmp_path, "ratio")["step"]) == 7 * 6
    assert len(arrays(tmp_path, "gradient")["parameters"]) == 7


class Silent(Manual):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)


def test_a_training_step_that_returns_nothing_by_hand_is_told(make_trainer, tmp_path):
    with pytest.raises(MisconfigurationException, match="the dictionary that the step returned is empty"):
        train(make_trainer, tmp_path, Silent(), [RatioDistribution()])
