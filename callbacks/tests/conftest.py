"""Fixtures of all tests: a small module, a quiet trainer, a recording logger, two ranks."""

import os
import socket
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from guardlit_callbacks.tools.lightning import Callback, LightningModule, Trainer

HUNG = 120
"""Seconds after which two ranks count as deadlocked; a run takes about 10 on a busy machine."""

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent / "support"))  # helpers that several tests import by plain names
ROOT = Callback.__module__.removesuffix(".callbacks.callback")  # lightning.pytorch or pytorch_lightning
Logger = import_module(f"{ROOT}.loggers.logger").Logger


class Recorder(Logger):
    """Records every (step, metrics) in order."""

    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def values(self, key):
        return [(step, metrics[key]) for step, metrics in self.calls if key in metrics]

    def keys(self, prefix=""):
        return sorted({key for _, metrics in self.calls for key in metrics if key.startswith(prefix)} - {"epoch"})


class SmallModule(LightningModule):
    """A frozen base and a trainable layer; a step returns the loss and what `train_outputs` adds."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.base = torch.nn.Linear(4, 4).requires_grad_(False)
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(self.base(x))

    def train_outputs(self, x, batch_idx):
        return {}

    def training_step(self, x, batch_idx):
        return {"loss": self(x).square().mean(), **self.train_outputs(x, batch_idx)}

    def validation_step(self, x, batch_idx):
        return None

    def test_step(self, x, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.layer.parameters(), lr=0.1, momentum=0.5)


def batches(n=8, size=2):
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(n * size, 4, generator=generator)
    return torch.utils.data.DataLoader(data, batch_size=size)


@pytest.fixture
def small_module():
    return SmallModule


@pytest.fixture
def loader():
    return batches


@pytest.fixture
def lightning_root():
    return ROOT


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def make_trainer(tmp_path):
    def make(*callbacks, **options):
        defaults = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "max_epochs": 1,
            "default_root_dir": tmp_path,
        }
        return Trainer(callbacks=list(callbacks), **{**defaults, **options})

    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    return make


def _child(rank, function, port, args):
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        GROUP_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        TORCHELASTIC_RUN_ID="test",
        GLOO_SOCKET_IFNAME="lo",
    )
    torch.set_num_threads(1)
    function(rank, *args)


@pytest.fixture
def two_processes():
    """Runs function(rank, *args) on two forked ranks that Lightning connects by gloo."""

    def run(function, *args):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        both = mp.start_processes(_child, args=(function, port, args), nprocs=2, join=False, start_method="fork")
        for _ in range(HUNG):
            if both.join(timeout=1):
                return
        for process in both.processes:  # a collective that only one of them called waits forever
            process.kill()
        pytest.fail(f"two ranks had not ended after {HUNG} s")

    return run
