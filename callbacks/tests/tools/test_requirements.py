"""What a callback needs of a run it checks itself, in one line."""

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from guardlit_callbacks import (
    DriftSentinels,
    GoldScore,
    GradientNorm,
    GradientSpikes,
    PhaseTimer,
    SampleGrid,
    TrainableEMA,
)
from guardlit_callbacks.tools.lightning import Callback, LightningModule, MisconfigurationException
from guardlit_callbacks.tools.requirements import check_strategy, check_unscaled

STRATEGIES = import_module(Callback.__module__.rsplit(".", 2)[0] + ".strategies")


class Plain:
    def setup(self, device):
        pass

    def score(self, request):
        return [1.0] * len(request)


def watchers():
    return [SampleGrid(), DriftSentinels(), GoldScore({"plain": Plain()})]


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "DeepSpeedStrategy"])
@pytest.mark.parametrize("callback", [GradientNorm(), GradientSpikes(), TrainableEMA()])
def test_strategies_that_hide_parameters_are_refused(strategy, callback):
    trainer = SimpleNamespace(strategy=object.__new__(getattr(STRATEGIES, strategy)))
    with pytest.raises(MisconfigurationException, match=rf"{type(callback).__name__}: (FSDP1|DeepSpeed) hides"):
        callback.on_train_start(trainer, None)
    check_strategy(SimpleNamespace(strategy=object.__new__(STRATEGIES.DDPStrategy)), callback)


def test_an_optimizer_that_unscales_itself_is_refused():
    weight = torch.nn.Parameter(torch.zeros(1))
    fused, other = torch.optim.AdamW([weight], fused=True), torch.optim.AdamW([weight])
    scaled = SimpleNamespace(scaler=torch.amp.GradScaler("cpu"))
    trainer = SimpleNamespace(optimizers=[fused], precision_plugin=scaled)
    with pytest.raises(MisconfigurationException, match=r"GradientNorm: a fused AdamW in 16-mixed .* set fused=False"):
        check_unscaled(trainer, GradientNorm())
    check_unscaled(SimpleNamespace(optimizers=[other], precision_plugin=scaled), GradientNorm())
    check_unscaled(SimpleNamespace(optimizers=[fused], precision_plugin=SimpleNamespace(scaler=None)), GradientNorm())


class TrainsOnly(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, x, batch_idx):
        return self.layer(x).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_that_cannot_validate_is_refused(make_trainer, loader):
    for callback in watchers():
        line = rf"{type(callback).__name__}: TrainsOnly has no validation_step; write one that returns the images"
        with pytest.raises(MisconfigurationException, match=line):
            make_trainer(callback).fit(TrainsOnly(), loader())


def test_a_run_without_validation_is_warned_of(make_trainer, small_module, loader):
    for callback in watchers():
        with pytest.warns(UserWarning, match=f"{type(callback).__name__}: this run does not validate"):
            make_trainer(callback, limit_val_batches=0).fit(small_module(), loader(), loader(1))


class Validates(TrainsOnly):
    """The first dataloader gives a loss, the second one images."""

    def validation_step(self, x, batch_idx, dataloader_idx=0):
        if dataloader_idx == 0:
            return {"loss": self.layer(x).mean()}
        images = torch.full((len(x), 3, 16, 16), batch_idx, dtype=torch.uint8)
        return {"images": images, "prompts": ["a cup"] * len(x), "reward": x[:, 0]}


def test_one_of_several_dataloaders_is_read(make_trainer, loader):
    both = [loader(2), loader(3)]
    gold, grid = GoldScore({"plain": Plain()}, dataloader=1), SampleGrid(dataloader=1)
    make_trainer(gold, grid, DriftSentinels(dataloader=1)).validate(Validates(), both, verbose=False)
    assert gold.history[0]["plain"] == 1
    assert len(grid._strip[0].images) == 4  # of six
    with pytest.raises(MisconfigurationException, match=r"no output 'images': .* has only 'loss'"):
        make_trainer(SampleGrid()).validate(Validates(), both, verbose=False)


def test_several_dataloaders_are_never_mixed(make_trainer, loader):
    class Images(Validates):
        def validation_step(self, x, batch_idx, dataloader_idx=0):
            return super().validation_step(x, batch_idx, 1)

    with pytest.raises(MisconfigurationException, match=r"several dataloaders; .* SampleGrid\(dataloader=0\)"):
        make_trainer(SampleGrid()).validate(Images(), [loader(2), loader(3)], verbose=False)


class Unfreezes(Callback):
    """Makes the frozen base trainable from the second epoch on."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.base.requires_grad_(True)
            trainer.optimizers[0].add_param_group({"params": list(pl_module.base.parameters())})


@pytest.mark.parametrize("ema_first", [True, False])
def test_weights_that_become_trainable_are_averaged(make_trainer, small_module, loader, ema_first):
    ema, module = TrainableEMA(decay=0.5), small_module()
    start = module.base.weight.detach().clone()
    callbacks = [ema, Unfreezes()] if ema_first else [Unfreezes(), ema]
    make_trainer(*callbacks, max_epochs=2).fit(module, loader(1))
    with ema.average(module):
        average = module.base.weight.detach().clone()
    assert not torch.equal(module.base.weight, start)
    assert torch.allclose(average, (start + module.base.weight) / 2)  # one update of decay 0.5
    assert ema.state_dict()["averages"].keys() == dict(module.named_parameters()).keys()


def test_attributes_that_are_reset_are_refused(make_trainer, small_module, loader):
    class Resets(small_module):
        seconds, made = None, 0

        def on_train_batch_start(self, batch, batch_idx):
            self.seconds = {"rollout": 1.0 / (1 + batch_idx)}

        def on_train_epoch_start(self):
            self.seconds, self.made = {"rollout": 0.0}, 8 - 4 * self.current_epoch

    module = Resets()
    module.seconds = {"rollout": 0.0}
    with pytest.raises(MisconfigurationException, match=r"'rollout' in 'seconds' of the module fell from 1 to 0.5"):
        make_trainer(PhaseTimer(phases="seconds")).fit(module, loader())
    with pytest.raises(MisconfigurationException, match=r"'made' of the module fell from 8 to 4; .* do not reset it"):
        make_trainer(PhaseTimer(samples="made"), max_epochs=2).fit(Resets(), loader())
