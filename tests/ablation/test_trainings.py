"""`guardlit ablate` trains each objective in a separate process: side by side, skipped, resumed, failed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from runs import config, differing, guardlit, newest, start


def ablate(*args: object) -> subprocess.CompletedProcess[str]:
    with start("ablate", *args) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(args, process.returncode, out, err)


@pytest.mark.slow
def test_trains_each_objective_then_skips_all(sd3_folder: Path, tmp_path: Path):
    path = config(tmp_path, sd3_folder, trainer__max_epochs=1)
    arguments = ("--config", path, "--objectives", "FlowGRPO,GRPOGuard", "--seeds", "7", "--out", tmp_path / "out")
    arguments += ("--clip", "FlowGRPO=1e-3", "--lr", "GRPOGuard=5e-4", "--data.prompts_per_round", 1, "--jobs", 2)
    dry = ablate(*arguments, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    folders = [tmp_path / "out" / name / "seed_7" for name in ("FlowGRPO", "GRPOGuard")]
    plan = [f"{folders[0]}: clip 0.001, starts", f"{folders[1]}: clip 0.0001, lr 0.0005, starts"]
    assert dry.stdout.splitlines() == plan
    assert not (tmp_path / "out").exists()

    first = ablate(*arguments)
    assert first.returncode == 0, first.stderr
    for folder, name, lr in zip(folders, ("FlowGRPO", "GRPOGuard"), (1e-3, 5e-4), strict=True):
        checkpoint = torch.load(newest(folder), weights_only=True)
        assert checkpoint["epoch"] + 1 >= 1
        record = json.loads((folder / "ablate.json").read_text())
        assert record["finished"] is True
        assert record["cpu_seconds"] > 0
        assert record["settings"]["model"]["objective"]["class_path"] == f"guardlit.objective.{name}"
        assert record["settings"]["model"]["optimizer"]["init_args"]["lr"] == lr
        assert record["settings"]["data"]["prompts_per_round"] == 1
        assert record["settings"]["seed_everything"] == 7
        assert f"{folder}: starts, log {folder / 'ablate.log'}" in first.stdout
        assert "images per round" in (folder / "ablate.log").read_text()
    assert "images per round" not in first.stdout + first.stderr
    assert differing(*map(newest, folders), keys=("state_dict",))

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.ckpt")}
    second = ablate(*arguments)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("finished, is skipped") == 2
    page = (tmp_path / "out/report/index.html").read_text()
    assert all(name in page for name in ("FlowGRPO", "GRPOGuard"))
    assert second.stdout.splitlines()[-1] == str(tmp_path / "out/report/index.html")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.ckpt")} == before

    other = ablate(*arguments, "--data.prompts_per_round", 2)
    assert other.returncode == 2
    assert "was trained with data.prompts_per_round=1, now it is 2: choose another --out" in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "jobs"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_an_interrupted_ablation_resumes_and_equals_an_undisturbed_one(
    sd3_folder: Path, tmp_path: Path, signum: signal.Signals, jobs: int
):
    path = config(tmp_path, sd3_folder, trainer__max_epochs=3)
    seeds = [3, 4][:jobs]
    common = ("--config", path, "--objectives", "GRPOGuard", "--seeds", ",".join(map(str, seeds)), "--jobs", jobs)
    undisturbed, interrupted = tmp_path / "undisturbed", tmp_path / "interrupted"
    assert ablate(*common, "--out", undisturbed).returncode == 0
    folders = [interrupted / f"GRPOGuard/seed_{seed}" for seed in seeds]
    with start("ablate", *common, "--out", interrupted, PYTHONUNBUFFERED="1") as process:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and not list(interrupted.glob("*/*/version_0/checkpoints/*.ckpt")):
            time.sleep(0.02)
        os.kill(process.pid, signum)  # one training has a checkpoint, the other is at most a little further or behind
        _, err = process.communicate()
    assert process.returncode == 128 + signum, err
    assert not all(json.loads((f / "ablate.json").read_text())["finished"] for f in folders)
    again = ablate(*common, "--out", interrupted)
    assert again.returncode == 0, again.stderr
    assert re.search(r"resumes from .*/version_0/checkpoints/interrupted\.ckpt", again.stdout)
    for folder, seed in zip(folders, seeds, strict=True):
        other = undisturbed / f"GRPOGuard/seed_{seed}"
        assert differing(newest(other), newest(folder), keys=("state_dict", "optimizer_states")) == []
        assert json.loads((folder / "ablate.json").read_text())["finished"] is True


@pytest.mark.slow
def test_a_failed_training_does_not_stop_the_others(sd3_folder: Path, tmp_path: Path):
    path = config(tmp_path, sd3_folder, trainer__max_epochs=1)
    out = tmp_path / "out"
    common = ("--config", path, "--objectives", "FlowGRPO,GRPOGuard", "--seeds", 3, "--out", out)
    dead = out / "FlowGRPO/seed_3"
    dead.mkdir(parents=True)
    (dead / "version_0").touch()  # where the run's folder belongs
    (dead / "ablate.json").write_text("{}")
    corrupt = ablate(*common)
    assert corrupt.returncode == 2
    assert f"{dead / 'ablate.json'} is corrupt" in corrupt.stderr
    (dead / "ablate.json").unlink()
    (dead / "version_0").unlink()
    failed = ablate(*common, "--lr", "FlowGRPO=1e30")  # diverges at once
    assert failed.returncode == 1, failed.stderr
    assert f"guardlit ablate: error: {dead} failed: exit code" in failed.stderr
    assert json.loads((dead / "ablate.json").read_text())["finished"] is False
    assert json.loads((out / "GRPOGuard/seed_3/ablate.json").read_text())["finished"] is True
    page = (out / "report/index.html").read_text()
    assert "GRPOGuard" in page
    assert "FlowGRPO" not in page


@pytest.mark.slow
def test_a_failed_training_and_a_foreign_folder_are_one_line(sd3_folder: Path, tmp_path: Path, capsys):
    path = config(tmp_path, sd3_folder)
    common = ("--config", path, "--objectives", "FlowGRPO", "--out", tmp_path / "out")
    failed = ablate(*common, "--data.updates_per_round", 3)
    assert failed.returncode == 1
    folder = tmp_path / "out/FlowGRPO/seed_42"
    assert failed.stderr.splitlines()[-2:] == [
        f"guardlit ablate: error: {folder} failed: exit code 2",
        "guardlit ablate: the same command skips what is finished and resumes the others",
    ]
    (tmp_path / "out/FlowGRPO/seed_42/ablate.json").unlink()
    (tmp_path / "out/FlowGRPO/seed_42/notes.txt").write_text("mine")
    assert guardlit("ablate", *common) == 2
    assert f"{folder} holds files that are not of an ablation: choose another --out" in capsys.readouterr().err
