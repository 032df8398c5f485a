"""What DDP leaves out of its broadcasts, and when it reduces gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from guardlit_callbacks import GradientNorm, SyncDDP
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from guardlit import Trainer
from guardlit.processes.lightning_internals import ddp_options
from guardlit.training.ddp import keep_buffers
from guardlit.training.limits.strategies import NAMES


@pytest.mark.parametrize("kind", [DDPStrategy, SyncDDP])
@pytest.mark.parametrize("asked", [None, True])
def test_ddp_sends_no_buffers_round_unless_asked_to(kind: type[DDPStrategy], asked: bool | None, tmp_path: Path):
    options = {} if asked is None else {"broadcast_buffers": asked}
    strategy = kind(parallel_devices=[torch.device("cpu")], **options)
    keep_buffers(strategy)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = strategy._setup_model(torch.nn.BatchNorm1d(4))
        assert wrapped.broadcast_buffers is bool(asked)
    finally:
        dist.destroy_process_group()


def test_other_strategies_have_no_such_thing():
    keep_buffers(SingleDeviceStrategy("cpu"))


def test_the_trainer_calls_it(sd3_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from runs import config, guardlit

    from guardlit.training import run_trainer

    strategies: list[object] = []
    monkeypatch.setattr(run_trainer, "keep_buffers", strategies.append)
    path = config(tmp_path, sd3_folder, trainer__max_epochs=0)
    assert guardlit("fit", "--config", path) == 0
    assert [type(strategy) for strategy in strategies] == [SingleDeviceStrategy]


DDP = [*(name for name in NAMES if name != "fsdp"), DDPStrategy(find_unused_parameters=True)]


@pytest.mark.parametrize("strategy", DDP, ids=[*DDP[:-1], "object"])
@pytest.mark.parametrize(("every", "kind"), [(0, DDPStrategy), (5, SyncDDP)])
def test_a_callback_that_reads_micro_batches_gets_their_gradients(
    strategy: object, every: int, kind: type[DDPStrategy], tmp_path: Path
):
    chosen = DDPStrategy(find_unused_parameters=True) if isinstance(strategy, DDPStrategy) else strategy
    callbacks = [GradientNorm(parameters_every=every)]
    trainer = Trainer(
        strategy=chosen, devices=2, accelerator="cpu", callbacks=callbacks, default_root_dir=tmp_path, logger=False
    )
    assert type(trainer.strategy) is kind
    unused = isinstance(strategy, DDPStrategy) or strategy == "ddp_find_unused_parameters_true"
    assert bool(ddp_options(trainer.strategy).get("find_unused_parameters")) is unused


def test_a_ddp_of_one_s_own_stays(tmp_path: Path):
    class Mine(DDPStrategy):
        pass

    callbacks = [GradientNorm(parameters_every=1)]
    trainer = Trainer(
        strategy=Mine(), devices=2, accelerator="cpu", callbacks=callbacks, default_root_dir=tmp_path, logger=False
    )
    assert type(trainer.strategy) is Mine
