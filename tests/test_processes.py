"""Two processes, by torchrun on gloo: a run goes through, and it is the run of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from runs import config, guardlit, newest

TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def torchrun(*args: object) -> int:
    """`guardlit ARGS` on two processes; its exit code."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "guardlit"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run([*command, *map(str, args)], env=environment, timeout=240, check=False).returncode


def test_two_processes_make_the_updates_of_one(sd3_folder: Path, tmp_path: Path):
    callbacks = [
        {"class_path": "guardlit_callbacks.TrainableEMA"},
        {"class_path": "guardlit.export.ExportAtEnd"},
        {"class_path": "guardlit_callbacks.SampleGrid"},
    ]
    changes = {"trainer__max_epochs": 1, "trainer__callbacks": callbacks}
    states = {}
    for name, run, extra in (("one", guardlit, ()), ("two", torchrun, TWO)):
        (tmp_path / name).mkdir()
        # plain gradient descent: Adam would blow rounding up where a gradient is almost 0
        path = config(tmp_path / name, sd3_folder, data__micro_batch=2, data__rollout_batch=2, **changes)
        sgd = ("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "10.0")
        assert run("fit", "--config", path, *sgd, *extra) == 0
        states[name] = torch.load(newest(tmp_path / name), weights_only=True)["state_dict"]
        assert len(list((tmp_path / name).rglob("pytorch_lora_weights.safetensors"))) == 2
    moved = max(float(v.abs().max()) for k, v in states["one"].items() if "lora_B" in k)
    assert moved > 1e-3
    for name, value in states["one"].items():
        torch.testing.assert_close(states["two"][name], value, rtol=1e-4, atol=1e-5 * moved)
