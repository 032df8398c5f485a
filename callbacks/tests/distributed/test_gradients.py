import pytest
import torch
from guardlit_callbacks import GradientNorm, GradientSpikes
from guardlit_callbacks.distributed import gradient_norm, gradients, zero_fraction
from guardlit_callbacks.tools.lightning import Callback
from toy_flow import Rounds, ToyFlow, transitions


class Ask(Callback):
    """Keeps the shared norm of each update, and the norm computed again."""

    def __init__(self):
        self.shared, self.fresh = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.shared.append(float(gradient_norm(pl_module)))
        self.fresh.append(float(pl_module.velocity.grad.norm()))


class Scale(Callback):
    """Scales every gradient in place."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pl_module.velocity.grad.mul_(10)


class Knowing(ToyFlow):
    """Provides its own norm."""

    def gradient_norm(self):
        return torch.tensor(7.0 + self.global_step)


class Measuring(ToyFlow):
    """Has a metric under the method's name."""

    def __init__(self):
        super().__init__()
        self.gradient_norm = torch.nn.Identity()


@pytest.fixture
def computed(monkeypatch):
    """Counts the norms that are computed for `gradient_norm`."""
    calls = []
    total_norm = gradients.total_norm
    monkeypatch.setattr(gradients, "total_norm", lambda g: calls.append(1) or total_norm(g))
    return calls


def test_callbacks_share_one_norm_an_update(make_trainer, computed):
    first, second = Ask(), Ask()
    callbacks = [first, GradientNorm(draw_every=0), GradientSpikes(), second]
    make_trainer(*callbacks, accumulate_grad_batches=2).fit(ToyFlow(), Rounds(transitions()))
    assert len(computed) == len(first.shared) == 3
    assert first.shared == second.shared == pytest.approx(first.fresh, rel=1e-6)
    assert len(set(first.shared)) == 3


def test_a_gradient_that_changed_in_between_is_measured_again(make_trainer, computed):
    first, second = Ask(), Ask()
    make_trainer(first, Scale(), second).fit(ToyFlow(), Rounds(transitions()))
    assert len(computed) == 2 * len(first.shared)
    assert second.shared == pytest.approx([10 * norm for norm in first.shared], rel=1e-6)


def test_a_second_run_of_the_same_module_starts_afresh(make_trainer):
    module = ToyFlow()
    for _ in range(2):
        ask = Ask()
        make_trainer(ask).fit(module, Rounds(transitions()))
        assert ask.shared == pytest.approx(ask.fresh, rel=1e-6)


def test_a_modules_own_norm_is_taken(make_trainer, recorder, computed):
    ask = Ask()
    trainer = make_trainer(ask, GradientNorm(draw_every=0), logger=recorder, accumulate_grad_batches=2)
    trainer.fit(Knowing(), Rounds(transitions()))
    assert (ask.shared, computed) == ([7.0, 8.0, 9.0], [])
    assert recorder.values("gradient/norm_before_clipping")[0][1] == 8.0


def test_another_attribute_of_that_name_is_not_called(make_trainer):
    ask = Ask()
    make_trainer(ask).fit(Measuring(), Rounds(transitions()))
    assert ask.shared == pytest.approx(ask.fresh, rel=1e-6)


def test_zeros_are_counted_over_all_entries():
    given = [torch.tensor([0.0, 1.0, -0.0]), None, torch.zeros(2, 2), torch.ones(1)]
    assert float(zero_fraction(given)) == pytest.approx(6 / 8)
    assert float(zero_fraction([None])) == 0
