import copy
from importlib import import_module

import pytest
import torch
from guardlit_callbacks import TrainableEMA
from guardlit_callbacks.tools.lightning import Callback, MisconfigurationException


class Weights(Callback):
    """The trainable weights after each optimizer step, in float64."""

    def __init__(self):
        self.seen = []
        self.step = 0

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            self.seen.append(pl_module.layer.weight.detach().double().clone())


def expected(start, seen, decay, every=1, warmup=False):
    average, updates = start.double().clone(), 0
    for step, weight in enumerate(seen, start=1):
        if step % every == 0:
            kept = min(decay, (1 + updates) / (10 + updates)) if warmup else decay
            average = kept * average + (1 - kept) * weight
            updates += 1
    return average


@pytest.mark.parametrize(
    ("options", "accumulate"),
    [({}, 1), ({"every": 3}, 1), ({"warmup": True}, 1), ({"decay": 0.5}, 2), ({"every": 2, "device": "cpu"}, 4)],
)
def test_average_equals_a_float64_loop(small_module, loader, make_trainer, options, accumulate):
    module, ema, weights = small_module(), TrainableEMA(**options), Weights()
    start = module.layer.weight.detach().clone()
    make_trainer(ema, weights, accumulate_grad_batches=accumulate, max_epochs=2).fit(module, loader())
    state = ema.state_dict()
    loop = expected(start, weights.seen, **{"decay": 0.9, **{k: v for k, v in options.items() if k != "device"}})
    assert len(weights.seen) == 16 // accumulate
    assert set(state["averages"]) == {"layer.weight", "layer.bias"}
    torch.testing.assert_close(state["averages"]["layer.weight"].double(), loop, rtol=1e-6, atol=1e-7)
    assert state["updates"] == len(weights.seen) // options.get("every", 1)
    assert not torch.equal(state["averages"]["layer.weight"], module.layer.weight)


class Watch(Callback):
    """The layer's weight as validation sees it."""

    def __init__(self, fail=False):
        self.fail, self.seen = fail, []

    def on_validation_batch_end(self, trainer, pl_module, *_):
        self.seen.append(pl_module.layer.weight.detach().clone())
        if self.fail:
            raise RuntimeError("validation broke")

    on_test_batch_end = on_validation_batch_end


def test_validation_and_test_use_the_average_and_restore_the_weights(small_module, loader, make_trainer):
    module, ema, watch, weights = small_module(), TrainableEMA(), Watch(), Weights()
    trainer = make_trainer(ema, watch, weights)
    trainer.fit(module, loader(), loader(1))
    average = ema.state_dict()["averages"]["layer.weight"]
    assert torch.equal(watch.seen[-1], average)
    assert torch.equal(module.layer.weight.double(), weights.seen[-1])
    trainer.test(module, loader(1), verbose=False)
    assert torch.equal(watch.seen[-1], average)
    assert torch.equal(module.layer.weight.double(), weights.seen[-1])


def test_use_for_validation_off_leaves_the_weights(small_module, loader, make_trainer):
    module, watch = small_module(), Watch()
    make_trainer(TrainableEMA(use_for_validation=False), watch).fit(module, loader(), loader(1))
    assert torch.equal(watch.seen[-1], module.layer.weight)


def test_weights_are_restored_when_validation_raises(small_module, loader, make_trainer):
    module, weights = small_module(), Weights()
    with pytest.raises(RuntimeError, match="validation broke"):
        make_trainer(TrainableEMA(), Watch(fail=True), weights).fit(module, loader(), loader(1))
    assert torch.equal(module.layer.weight.double(), weights.seen[-1])


def test_context_manager_nests_and_restores(small_module, loader, make_trainer):
    module, ema = small_module(), TrainableEMA()
    make_trainer(ema).fit(module, loader())
    raw, average = module.layer.weight.detach().clone(), ema.state_dict()["averages"]["layer.weight"]
    with ema.average(module):
        with ema.average(module):
            assert torch.equal(module.layer.weight, average)
        assert torch.equal(module.layer.weight, average)
    assert torch.equal(module.layer.weight, raw)
    with pytest.raises(KeyError), ema.average(module):
        raise KeyError
    assert torch.equal(module.layer.weight, raw)


def test_double_precision_weights_are_restored_exactly(small_module, loader, make_trainer):
    module, ema = small_module(), TrainableEMA()
    make_trainer(ema).fit(module, loader())
    module.double()
    raw = module.layer.weight.detach().add_(1e-12).clone()
    with ema.average(module):
        pass
    assert torch.equal(module.layer.weight, raw)


def test_a_resumed_run_equals_an_uninterrupted_one(small_module, loader, make_trainer, tmp_path):
    full = TrainableEMA(every=3, warmup=True)
    make_trainer(full, max_epochs=2).fit(small_module(), loader())
    first = make_trainer(TrainableEMA(every=3, warmup=True), max_epochs=1)
    first.fit(small_module(), loader())
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = TrainableEMA(every=3, warmup=True)
    trainer = make_trainer(resumed, max_epochs=2)
    trainer.fit(small_module(seed=5), loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for name, average in full.state_dict()["averages"].items():
        assert torch.equal(resumed.state_dict()["averages"][name], average)
    assert resumed.state_dict()["updates"] == 5


def test_validating_a_checkpoint_uses_its_average(small_module, loader, make_trainer, tmp_path):
    trainer = make_trainer(ema := TrainableEMA())
    trainer.fit(small_module(), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    fresh, watch = small_module(seed=3), Watch()
    validating = make_trainer(TrainableEMA(), watch)
    validating.validate(fresh, loader(1), ckpt_path=tmp_path / "a.ckpt", weights_only=False, verbose=False)
    assert torch.equal(watch.seen[-1], ema.state_dict()["averages"]["layer.weight"])


def test_validating_a_checkpoint_without_average_warns(small_module, loader, make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.fit(small_module(), loader())
    trainer.save_checkpoint(tmp_path / "raw.ckpt")
    with pytest.warns(UserWarning, match="holds no averages"):
        make_trainer(TrainableEMA()).validate(
            small_module(), loader(1), ckpt_path=tmp_path / "raw.ckpt", weights_only=False, verbose=False
        )


def test_training_continues_after_validating_a_checkpoint(small_module, loader, make_trainer, tmp_path):
    trainer = make_trainer(TrainableEMA())
    trainer.fit(small_module(), loader())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    module, ema = small_module(seed=3), TrainableEMA()
    trainer = make_trainer(ema, max_epochs=2)
    trainer.validate(module, loader(1), ckpt_path=tmp_path / "a.ckpt", weights_only=False, verbose=False)
    before = ema.state_dict()["averages"]["layer.weight"]
    trainer.fit(module, loader(3))
    assert ema.state_dict()["updates"] == 8 + 6
    assert not torch.equal(ema.state_dict()["averages"]["layer.weight"], before)


class SaveInValidation(Callback):
    def __init__(self, path):
        self.path = path

    def on_validation_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


def test_checkpoint_written_during_validation_holds_the_raw_weights(small_module, loader, make_trainer, tmp_path):
    module = small_module()
    make_trainer(SaveInValidation(tmp_path / "in.ckpt"), TrainableEMA()).fit(module, loader(), loader(1))
    saved = torch.load(tmp_path / "in.ckpt", weights_only=False)
    assert torch.equal(saved["state_dict"]["layer.weight"], module.layer.weight)


def test_compiled_wrapper_names_are_cleaned(small_module, loader, make_trainer):
    module, ema = small_module(), TrainableEMA()
    make_trainer(ema).fit(module, loader())
    wrapped = small_module(seed=2)
    wrapped._modules["layer"] = torch.nn.ModuleDict({"_orig_mod": wrapped.layer})
    other = TrainableEMA()
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    with other.average(wrapped):
        assert torch.equal(wrapped.layer["_orig_mod"].weight, ema.state_dict()["averages"]["layer.weight"])


@pytest.mark.parametrize(
    ("averages", "says"),
    [
        ({"layer.weight": torch.zeros(3, 4)}, "'layer.bias' is missing"),
        ({"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3), "x": torch.zeros(1)}, "'x' is unexpected"),
        (
            {"layer.weight": torch.zeros(2, 4), "layer.bias": torch.zeros(3)},
            r"'layer.weight' has shape \(2, 4\) where the model has \(3, 4\)",
        ),
    ],
)
def test_average_of_another_model_is_refused_in_one_line(small_module, averages, says):
    ema = TrainableEMA()
    ema.load_state_dict({"averages": averages, "updates": 1})
    with pytest.raises(MisconfigurationException, match=says) as error, ema.average(small_module()):
        pass
    assert "\n" not in str(error.value)


def test_bad_arguments_and_missing_averages(small_module, make_trainer):
    with pytest.raises(ValueError, match="decay must be in"):
        TrainableEMA(decay=1.0)
    with pytest.raises(ValueError, match="every must be at least 1"):
        TrainableEMA(every=0)
    with pytest.raises(MisconfigurationException, match="no averages yet"), TrainableEMA().average(small_module()):
        pass
    frozen = small_module().requires_grad_(False)
    with pytest.raises(MisconfigurationException, match="no parameter with requires_grad"):
        TrainableEMA().on_train_start(make_trainer(), frozen)


def test_sharded_average_equals_one_process(
    small_module, loader, make_trainer, lightning_root, two_processes, tmp_path
):
    strategy_class = import_module(f"{lightning_root}.strategies").ModelParallelStrategy

    class Sharded(small_module):
        def configure_model(self):
            from torch.distributed.fsdp import fully_shard

            if self.device_mesh is not None:
                fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])

    def train(rank, steps, source, target):
        strategy = strategy_class(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
        watch = Watch()
        trainer = make_trainer(
            TrainableEMA(every=2), watch, devices=2, strategy=strategy, max_steps=steps, max_epochs=-1,
            use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(Sharded(), loader(), loader(1), ckpt_path=source, weights_only=False)
        trainer.save_checkpoint(target)

    two_processes(train, 8, None, tmp_path / "half.ckpt")
    two_processes(train, 16, tmp_path / "half.ckpt", tmp_path / "full.ckpt")
    ema = TrainableEMA(every=2)
    make_trainer(ema, max_steps=16, max_epochs=-1).fit(small_module(), loader())
    sharded = torch.load(tmp_path / "full.ckpt", weights_only=False)["callbacks"]["TrainableEMA"]
    assert sharded["updates"] == 8
    for name, average in ema.state_dict()["averages"].items():
        torch.testing.assert_close(sharded["averages"][name], average, rtol=1e-6, atol=1e-7)
