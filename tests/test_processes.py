"""Two processes, by torchrun on gloo: a run goes through, and it is the run of one process."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import config, guardlit, newest

HERE = Path(__file__).parent
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def torchrun(*args: object) -> int:
    """`guardlit ARGS` on two processes; its exit code."""
    return started(*args).returncode


def started(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """`guardlit ARGS` on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "guardlit"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    return subprocess.run([*command, *map(str, args)], env=environment, timeout=240, check=False, text=True, **options)


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


def failing(folder: Path, model: Path, **init: object) -> subprocess.CompletedProcess[str]:
    """One round on two processes, the second of which has a scorer that fails."""
    reward = {"class_path": "background.Background", "init_args": {"rank": 1, **init}}
    settings = {"data__micro_batch": 2, "data__val": None, "trainer__max_epochs": 1, "model__max_failed_fraction": 0.25}
    path = config(folder, model, model__reward=reward, **settings)
    return started("fit", "--config", path, *TWO, stderr=subprocess.PIPE)


def test_a_sample_that_fails_on_one_process_is_left_out_on_both(sd3_folder: Path, tmp_path: Path):
    done = failing(tmp_path, sd3_folder, how="first")
    assert done.returncode == 0, done.stderr
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["reward/failed"])
    assert float(row["reward/failed"]) == 1 / 8
    assert float(row["reward/background/requests"]) == 4  # two on each process
    assert float(row["reward/background/latency_p95"]) == 1  # the larger of 0 and 1


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("raise", "rewards failed, more than max_failed_fraction=0.25; the first on prompt '"),
        ("hopeless", "round 0, process 1: reward 'background' failed on images of '"),
    ],
)
def test_a_scorer_that_raises_on_one_process_stops_both(sd3_folder: Path, tmp_path: Path, how: str, expected: str):
    done = failing(tmp_path, sd3_folder, how=how)
    said = [line for line in done.stderr.splitlines() if line.startswith("guardlit fit: error: ")]
    assert done.returncode != 0
    assert len(said) == 2, done.stderr
    assert said[0] == said[1]
    assert expected in said[0]
    assert "process 1" in said[0]
    assert "the wires are cut" in said[0]
