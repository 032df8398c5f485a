"""Lightning's private names that guardlit relies on: each test names one, and fails where a new Lightning lacks it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor
from torch.utils.data import DataLoader

from guardlit.commands.lightning_cli import GuardlitCLI
from guardlit.processes import lightning_internals as internals

BATCHES, EPOCHS, ACCUMULATED = 4, 2, 2
QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}


class Line(pl.LightningModule):
    """Fits one number, and remembers at which step it was validated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.validated: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight - batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.trainer.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Calls(pl.Callback):
    """Calls functions from a training."""

    def __init__(self, **hooks: Any) -> None:
        for name, hook in hooks.items():
            setattr(self, name, hook)


def fit(folder: Path, callback: pl.Callback | None = None, ckpt_path: str | None = None, **settings: Any) -> pl.Trainer:
    """A training of two epochs of four batches, two an update."""
    defaults = {"max_epochs": EPOCHS, "accumulate_grad_batches": ACCUMULATED, "num_sanity_val_steps": 0, **QUIET}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=callback and [callback], **(defaults | settings))
    numbers = DataLoader(torch.arange(float(BATCHES)), batch_size=1)
    trainer.fit(Line(), numbers, DataLoader(torch.zeros(1)), ckpt_path=ckpt_path)
    return trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> pl.Trainer:
    """A Trainer after its training."""
    return fit(tmp_path_factory.mktemp("run"), enable_checkpointing=False)


@pytest.fixture
def loops(trainer: pl.Trainer) -> dict[str, Any]:
    """The state of the loops after the training, as a checkpoint has it."""
    return {"fit_loop": trainer.fit_loop.state_dict()}


# the state of the loops -----------------------------------------------------------------------------------------------

DONE = {"ready": BATCHES, "started": BATCHES, "processed": BATCHES, "completed": BATCHES}


@pytest.mark.parametrize(
    ("settings", "validated"),
    [
        ({"max_epochs": 5}, [4, 8, 10]),
        ({"max_epochs": 4}, [4, 8]),
        ({"max_epochs": -1, "max_steps": 6}, [4, 6]),
        ({"max_epochs": 5, "limit_val_batches": 0}, []),
        ({"max_epochs": 3, "check_val_every_n_epoch": None, "val_check_interval": 8}, [4, 6]),
    ],
)
def test_the_last_round_is_validated(settings: dict[str, Any], validated: list[int], tmp_path: Path):
    assert _validated(tmp_path, pl.Callback(), **settings) == validated


def test_a_round_that_ends_the_run_early_is_validated(tmp_path: Path):
    def stop(trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 6

    assert _validated(tmp_path, Calls(on_train_batch_end=stop), max_epochs=9) == [4, 6]


def _validated(folder: Path, callback: pl.Callback, **settings: Any) -> list[int]:
    defaults = {
        "check_val_every_n_epoch": 2,
        "accumulate_grad_batches": ACCUMULATED,
        "num_sanity_val_steps": 0,
        **QUIET,
    }
    trainer = pl.Trainer(default_root_dir=folder, callbacks=[callback], **(defaults | settings))
    internals.validate_last_round(trainer)
    line = Line()
    trainer.fit(line, DataLoader(torch.arange(float(BATCHES)), batch_size=1), DataLoader(torch.zeros(1)))
    return line.validated


def test_epoch_progress(loops: dict[str, Any]):
    assert set(loops["fit_loop"]["epoch_progress"]) >= {"total", "current"}
    assert set(loops["fit_loop"]["epoch_progress"]["current"]) == set(DONE)
    assert set(loops["fit_loop"]["epoch_progress"]["current"].values()) == {EPOCHS}


def test_epoch_loop_batch_progress(loops: dict[str, Any]):
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["current"] == DONE
    assert progress["total"] == {key: EPOCHS * value for key, value in DONE.items()}
    assert progress["is_last_batch"] is True


def test_optim_progress(loops: dict[str, Any]):
    progress = loops["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    assert progress["optimizer"]["step"]["total"]["completed"] == EPOCHS * BATCHES // ACCUMULATED


def test_batches_that_stepped_in_a_checkpoint(loops: dict[str, Any]):
    state = loops["fit_loop"]["epoch_loop.state_dict"]
    assert state == {"_batches_that_stepped": EPOCHS * BATCHES // ACCUMULATED}


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end", "on_train_epoch_start"])
def test_a_closed_epoch_resumes_with_the_next(hook: str, tmp_path: Path):
    """Counters of the first epoch's end, or of the second's start, closed: the run makes the remaining updates."""

    def save(trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == BATCHES // ACCUMULATED and not (tmp_path / "a.ckpt").exists():
            trainer.save_checkpoint(tmp_path / "a.ckpt")

    fit(tmp_path, Calls(**{hook: save}))
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    internals.close_epoch(checkpoint, 1)
    torch.save(checkpoint, tmp_path / "closed.ckpt")
    batches: list[int] = []
    count = Calls(on_train_batch_start=lambda trainer, module, batch, index: batches.append(index))
    updates = {"max_epochs": -1, "max_steps": EPOCHS * BATCHES // ACCUMULATED, "limit_val_batches": 0}
    trainer = fit(tmp_path, count, ckpt_path=str(tmp_path / "closed.ckpt"), enable_checkpointing=False, **updates)
    assert batches == list(range(BATCHES))
    assert trainer.current_epoch == EPOCHS
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == trainer.global_step == updates["max_steps"]


def test_counters_move_within_an_epoch(loops: dict[str, Any]):
    checkpoint = {"loops": loops}
    internals.move_within_epoch(checkpoint, 0)
    assert loops["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == BATCHES
    internals.move_within_epoch(checkpoint, 3)
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    assert (progress["current"]["ready"], progress["total"]["ready"]) == (3, EPOCHS * BATCHES - 1)


# the loops of a training ----------------------------------------------------------------------------------------------


def test_log_metrics_of_the_logger_connector(tmp_path: Path):
    """Values stand at the number of updates made so far, and Lightning's own count is what it was."""
    logged: list[tuple[int | None, set[str]]] = []

    class Recorder(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            logged.append((step, set(metrics)))

    class Logs(Line):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            self.log("validated", 1.0)

    options = {**QUIET, "logger": Recorder(tmp_path), "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    settings = {"max_epochs": EPOCHS, "accumulate_grad_batches": ACCUMULATED, "enable_checkpointing": False}
    trainer = pl.Trainer(default_root_dir=tmp_path, **options, **settings)
    internals.log_at_global_step(trainer)
    trainer.fit(Logs(), DataLoader(torch.arange(float(BATCHES)), batch_size=1), DataLoader(torch.zeros(1)))
    steps = {key: [step for step, keys in logged if key in keys] for key in ("loss_step", "loss_epoch", "validated")}
    assert steps == {"loss_step": [1, 2, 3, 4], "loss_epoch": [2, 4], "validated": [2, 4]}
    assert all("epoch" in keys for _, keys in logged)
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == 4


def test_val_loop_run(tmp_path: Path):
    """It validates before the first batch, and the training continues."""
    first = Calls(on_train_start=lambda trainer, module: internals.validate_now(trainer))
    trainer = fit(tmp_path, first, enable_checkpointing=False)
    assert trainer.lightning_module.validated == [0, 2, 4]
    assert trainer.global_step == EPOCHS * BATCHES // ACCUMULATED


def test_batches_that_stepped(tmp_path: Path):
    """Loggers read it as the step; a repeated validation has the step of Lightning's own."""
    steps = []

    def repeat(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        steps.append(trainer.fit_loop.epoch_loop._batches_that_stepped)
        trainer.fit_loop.epoch_loop.val_loop.run = lambda: steps.append(  # type: ignore[method-assign]
            trainer.fit_loop.epoch_loop._batches_that_stepped
        )
        internals.repeat_validation(trainer)
        steps.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

    fit(tmp_path, Calls(on_train_end=repeat), enable_checkpointing=False)
    assert steps == [4, 3, 4]


def test_batch_progress(tmp_path: Path):
    """Within a micro-batch until its update is made."""
    within: list[bool] = []

    def note(trainer: pl.Trainer, *_: Any) -> None:
        within.append(internals.is_within_batch(trainer))

    hooks = (
        "on_train_epoch_start",
        "on_train_batch_start",
        "on_before_zero_grad",
        "on_train_batch_end",
        "on_train_end",
    )
    fit(tmp_path, Calls(**dict.fromkeys(hooks, note)), enable_checkpointing=False, max_steps=1)
    assert within == [False, True, True, False, True, False, False]


def test_an_epoch_that_is_cut_short_stays_open(tmp_path: Path):
    """Neither its last hooks nor the validation that a stop asks for."""
    partial: list[int] = []
    ends: list[int] = []

    def begin(trainer: pl.Trainer, *_: Any) -> None:
        internals.close_only_complete_epochs(trainer, lambda: partial.append(trainer.global_step))

    def stop(trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 3

    hooks = {"on_fit_start": begin, "on_train_batch_end": stop}
    end = {"on_train_epoch_end": lambda trainer, module: ends.append(trainer.global_step)}
    trainer = fit(tmp_path, Calls(**hooks, **end), enable_checkpointing=False)
    assert (partial, ends, trainer.lightning_module.validated) == ([3], [2], [2])
    assert trainer.fit_loop.epoch_progress.current.processed == 1


def test_reset_on_run(trainer: pl.Trainer):
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.current.ready = 3
    internals.reset_validation_progress(trainer)
    assert progress.current.ready == 0


def test_is_last_batch(tmp_path: Path):
    seen = []
    look = Calls(on_train_batch_end=lambda trainer, *_: seen.append(internals.is_last_batch(trainer)))
    fit(tmp_path, look, enable_checkpointing=False, max_epochs=1)
    assert seen == [False, False, False, True]


def test_batch_progress_current_ready(tmp_path: Path):
    seen = []
    look = Calls(
        on_train_epoch_start=lambda trainer, module: seen.append(internals.is_within_round(trainer)),
        on_train_batch_end=lambda trainer, *_: seen.append(internals.is_within_round(trainer)),
    )
    fit(tmp_path, look, enable_checkpointing=False, max_epochs=1)
    assert seen == [False, True, True, True, True]


def test_limits(tmp_path: Path):
    """Removed, they end neither a fit after its epochs nor after its steps."""
    ends = []

    def end(trainer: pl.Trainer, module: pl.LightningModule) -> None:
        ends.append(trainer.current_epoch)
        trainer.should_stop = len(ends) == 3

    hooks = Calls(on_train_epoch_end=end)
    trainer = pl.Trainer(
        max_epochs=1, max_steps=2, min_epochs=9, callbacks=[hooks], enable_checkpointing=False, **QUIET
    )
    internals.remove_limits(trainer)
    trainer.fit(Line(), DataLoader(torch.arange(float(BATCHES)), batch_size=1))
    assert ends == [0, 1, 2]


def test_broadcast_sigterm_tensor(tmp_path: Path):
    """Lightning calls the method at every batch of several ranks: replaced, it is not called."""
    loop = pl.Trainer(accelerator="cpu", logger=False, barebones=True).fit_loop.epoch_loop
    assert callable(loop._broadcast_sigterm_tensor)
    assert "_broadcast_sigterm_tensor" in type(loop).advance.__code__.co_names
    disable = Calls(on_train_start=lambda trainer, module: internals.disable_sigterm_broadcast(trainer))
    trainer = fit(tmp_path, disable, enable_checkpointing=False)
    assert trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor() is None


# connectors -----------------------------------------------------------------------------------------------------------


def test_accelerator_connector(tmp_path: Path):
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, plugins=[SLURMEnvironment(auto_requeue=False)])
    assert isinstance(internals.cluster_environment(trainer), SLURMEnvironment)
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False)
    assert isinstance(internals.cluster_environment(trainer), LightningEnvironment)


@pytest.mark.parametrize("offline", [False, True])
def test_wandb_init(offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    given: dict[str, Any] = {}
    monkeypatch.setattr(wandb, "init", lambda **arguments: given.update(arguments))
    monkeypatch.setenv("WANDB_MODE", "offline")  # which Lightning sets otherwise
    logger = WandbLogger(offline=offline)
    internals.wandb_arguments(logger)["dir"] = str(tmp_path)
    _ = logger.experiment
    assert given["dir"] == str(tmp_path)
    assert given.get("mode") == ("offline" if offline else None)


def test_hpc_save_path(tmp_path: Path):
    trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    assert internals.next_hpc_checkpoint(trainer) == tmp_path / "hpc_ckpt_1.ckpt"
    (tmp_path / "hpc_ckpt_4.ckpt").touch()
    assert internals.next_hpc_checkpoint(trainer) == tmp_path / "hpc_ckpt_5.ckpt"


def test_parse_ckpt_path():
    """LightningCLI calls it, which would read hyperparameters from the checkpoint; guardlit's does nothing."""
    assert "_parse_ckpt_path" in LightningCLI.__init__.__code__.co_names
    assert "_parse_ckpt_path" in vars(GuardlitCLI)


# strategies and launchers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DDPStrategy, ModelParallelStrategy])
def test_timeout(kind: type[Any]):
    assert internals.collective_timeout(kind(timeout=timedelta(seconds=7))) == timedelta(seconds=7)
    assert internals.collective_timeout(SingleDeviceStrategy()) is None


def test_setup_environment(tmp_path: Path):
    """The Trainer calls it on the strategy's instance before any callback's hook."""
    calls = []
    hooks = Calls(setup=lambda trainer, module, stage: calls.append("setup"))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[hooks]
    )
    internals.after_setup_environment(trainer.strategy, lambda: calls.append("connected"))
    trainer.fit(Line(), DataLoader(torch.zeros(1)))
    assert calls == ["connected", "setup"]


def test_procs():
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=1, num_nodes=1)
    assert launcher.procs == []
    strategy = DDPStrategy()
    strategy._launcher = launcher
    launcher.procs.append("process")  # type: ignore[arg-type]
    assert internals.child_processes(strategy) == ["process"]
    assert internals.child_processes(SingleDeviceStrategy()) == []


def test_data_parallel_size_and_tensor_parallel_size(monkeypatch: pytest.MonkeyPatch):
    """The base class builds its mesh from them."""
    strategy = ModelParallelStrategy()
    strategy.num_nodes, strategy.parallel_devices = 3, [torch.device("cpu")] * 2
    internals.shard_over_all_ranks(strategy)
    names = ModelParallelStrategy.setup_environment.__code__.co_names
    assert {"_data_parallel_size", "_tensor_parallel_size"} <= set(names)
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (6, 1)


def test_ddp_kwargs():
    strategy = DDPStrategy(broadcast_buffers=True)
    assert internals.ddp_options(strategy) == {"broadcast_buffers": True}
    assert "_ddp_kwargs" in DDPStrategy._setup_model.__code__.co_names


def test_start_method():
    assert internals.start_method(DDPStrategy()) == "popen"
    assert internals.start_method(DDPStrategy(start_method="fork")) == "fork"
