"""`data.micro_batch: auto`."""

from __future__ import annotations

import logging
import math
import signal
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from forked import on_ranks
from runs import config, differing, guardlit, newest
from small_policy import SmallPolicy
from torch import Tensor, nn
from watching import raise_after

from guardlit.errors import GuardlitError
from guardlit.processes.world import World
from guardlit.rounds.plan import RoundPlan, candidates
from guardlit.rounds.settings import Rollout
from guardlit.training.module import GRPOModule
from guardlit.training.update import micro_batch as auto
from guardlit.types import Transition

PLAN = RoundPlan(2, 4, 4, 2, 1, train_steps=4, world_size=1)  # 4 images x 4 steps an update


def test_candidates_divide_an_update_and_begin_where_the_round_stands():
    assert candidates(PLAN, 16) == [16, 8, 4, 2, 1]
    assert candidates(PLAN, 6) == [4, 2, 1]
    assert candidates(PLAN, 100, done=20) == [4, 2, 1]
    two = RoundPlan(2, 4, 4, 2, 2, train_steps=4, world_size=2)
    assert candidates(two, 16) == [8, 4, 2, 1]
    assert candidates(two, 16, done=24) == [4, 2, 1]


@dataclass
class Module:
    """A module of one weight whose step needs as many bytes a row as `row` says."""

    row: int
    limit: float = math.inf
    device_mesh: object = None
    world: World = field(default_factory=World.single)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    policy: SmallPolicy = field(default_factory=SmallPolicy)
    rollout: Rollout = field(default_factory=Rollout)
    plan: RoundPlan = PLAN
    old_velocity: str = "stored"
    elements: int = 4
    outputs: list = field(default_factory=list)
    tried: list[int] = field(default_factory=list)

    def parameters(self, recurse: bool = True) -> list[nn.Parameter]:
        return [self.policy.scale]

    def training_step(self, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
        self.tried.append(len(batch))
        if len(batch) > self.limit:
            raise torch.OutOfMemoryError("a device of so many rows")
        self.outputs.append({})
        rows = torch.zeros(len(batch), self.row // 4)
        return {"loss": (self.policy.scale * rows).sum()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.policy.scale.grad = None


CONDITIONING = {"number": torch.zeros(1)}


def test_free_memory_decides_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    """Rows of 1 MB, twice each: the product and its gradient."""
    found = []
    for megabytes in (4, 20, 100):
        module = Module(row=10**6)
        monkeypatch.setattr(auto, "free_memory", lambda megabytes=megabytes: megabytes * 1e6)
        found.append(auto.largest_that_fits(module, nullcontext, [16, 8, 4, 2, 1], CONDITIONING))
        assert module.tried == [1, 2]
        assert (module.outputs, module.policy.scale.grad) == ([], None)
    assert found == sorted(set(found))
    assert found[-1] == 16
    monkeypatch.setattr(auto, "free_memory", lambda: 1e5)
    with pytest.raises(GuardlitError, match="there is no memory for a micro-batch of 1"):
        auto.largest_that_fits(Module(row=10**6), nullcontext, [2, 1], CONDITIONING)


def test_a_step_decides_on_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auto, "_estimated", lambda module, step, sizes: auto.first_with_room(module, step, sizes, 100))
    module = Module(row=8, limit=4)
    assert auto.largest_that_fits(module, nullcontext, [16, 8, 4, 2], CONDITIONING) == 4
    assert module.tried == [16, 8, 4]
    assert (module.outputs, module.policy.scale.grad) == ([], None)


def test_the_smallest_of_all_ranks_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(auto, "_estimated", lambda module, step, sizes: auto.first_with_room(module, step, sizes, 100))

    def on_a_rank(world: World) -> int:
        module = Module(row=8, limit=8 if world.rank else 2, world=world)
        return auto.largest_that_fits(module, nullcontext, [8, 4, 2, 1], CONDITIONING)

    assert on_ranks(on_a_rank) == [2, 2]


def test_sharded_weights_cannot_be_tried():
    with pytest.raises(GuardlitError, match=r"cannot be tried under trainer\.strategy=fsdp"):
        auto.largest_that_fits(Module(row=8, device_mesh=object()), nullcontext, [1], CONDITIONING)


def test_trajectories_on_the_host_leave_the_device_alone():
    on_device, on_host = (auto.kept_bytes(Module(8, rollout=Rollout(trajectories=t))) for t in ("device", "host"))
    assert on_device - on_host == 2 * 8 * 4 * 4 * 4  # states and velocities of 8 images, 4 steps, 4 float32 elements


def fit(folder: Path, model: Path, size: int | str, *options: object, **changes: object) -> Path:
    folder.mkdir()
    changes = {"data__micro_batch": size, "data__rollout_batch": 8, "trainer__max_epochs": 2, **changes}
    assert guardlit("fit", "--config", config(folder, model, **changes), *options) == 0
    return newest(folder)


def test_with_room_it_is_the_run_of_the_largest(sd3_folder, tmp_path, caplog):
    """Bit for bit: the trial leaves no gradient, no output and no random number behind."""
    with caplog.at_level(logging.INFO):
        found = fit(tmp_path / "auto", sd3_folder, "auto")
    assert "micro_batch: auto takes 8 of 1, 2, 4, 8" in [r.getMessage() for r in caplog.records]
    assert "in 2 micro-batches of 8" in (tmp_path / "auto/runs/version_0/batches.txt").read_text()
    assert differing(found, fit(tmp_path / "8", sd3_folder, 8)) == []


def test_with_little_room_it_is_smaller(sd3_folder, tmp_path, monkeypatch):
    """Between what the meter says of 4 and of 8 rows."""
    peaks: list[int] = []
    original = auto._estimated

    def estimated(module, make_step, sizes):
        from guardlit.devices.meter import measured

        for rows in (4, 8):
            with measured() as cost:
                make_step(rows)
            peaks.append(cost.peak + auto.kept_bytes(module))
            auto.discard(module)
        monkeypatch.setattr(auto, "free_memory", lambda: sum(peaks) / 2 / auto.CPU_FRACTION)
        return original(module, make_step, sizes)

    monkeypatch.setattr(auto, "_estimated", estimated)
    found = fit(tmp_path / "auto", sd3_folder, "auto")
    assert peaks[0] < peaks[1]
    assert differing(found, fit(tmp_path / "4", sd3_folder, 4)) == []


def test_with_no_room_at_all_it_says_so(sd3_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(auto, "free_memory", lambda: 1000.0)
    path = config(tmp_path, sd3_folder, data__micro_batch="auto", data__rollout_batch=8)
    assert guardlit("fit", "--config", path) == 2
    assert "data.micro_batch=auto: there is no memory for a micro-batch of 1" in capsys.readouterr().err


def test_a_device_that_runs_out_is_asked_for_less(sd3_folder, tmp_path, monkeypatch):
    """As on a GPU, where the step itself says whether there is room."""
    tried: list[int] = []
    original = GRPOModule.training_step

    def step(self, batch, batch_idx):
        if batch_idx == auto.LATER:
            tried.append(len(batch))
            if len(batch) > 2:
                raise torch.OutOfMemoryError("a device of 2 rows")
        return original(self, batch, batch_idx)

    def on_device(module, make_step, sizes):
        return auto.first_with_room(module, make_step, sizes, 100)

    monkeypatch.setattr(GRPOModule, "training_step", step)
    monkeypatch.setattr(auto, "_estimated", on_device)
    found = fit(tmp_path / "auto", sd3_folder, "auto")
    assert tried == [8, 4, 2]
    assert differing(found, fit(tmp_path / "2", sd3_folder, 2)) == []


def test_a_resumed_run_keeps_its_micro_batch(sd3_folder, tmp_path, monkeypatch):
    """With less memory than before, in the middle of a round; and takes one that fits in the place of another's."""
    undisturbed, runs = fit(tmp_path / "a", sd3_folder, "auto"), tmp_path / "runs"
    path = tmp_path / "a" / "run.yaml"
    here = ("--config", path, "--trainer.default_root_dir", runs)
    raise_after(monkeypatch, "on_train_batch_end", 5)
    assert guardlit("fit", *here) == 128 + signal.SIGTERM
    monkeypatch.undo()
    saved = runs / "version_0/checkpoints/interrupted.ckpt"
    assert torch.load(saved, weights_only=True)["PromptDataModule"]["micro_batch"] == 8
    monkeypatch.setattr(auto, "free_memory", lambda: 0.0)  # is not read
    assert guardlit("fit", *here, "--ckpt_path", saved) == 0
    assert differing(undisturbed, newest(runs, "round*.ckpt")) == []
    assert guardlit("fit", *here, "--ckpt_path", saved, "--data.rollout_batch", 4) == 0


def test_other_commands_take_its_checkpoint(sd3_folder, tmp_path):
    """They have no use for a micro-batch."""
    saved = fit(tmp_path / "a", sd3_folder, "auto", trainer__max_epochs=1)
    assert guardlit("validate", "--config", tmp_path / "a" / "run.yaml", "--ckpt_path", saved) == 0


def test_it_needs_a_bound(sd3_folder, tmp_path, capsys):
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, data__micro_batch="auto")) == 2
    assert "data.micro_batch=auto needs data.rollout_batch" in capsys.readouterr().err


def test_the_plan_counts_the_largest(sd3_folder, tmp_path, capsys):
    path = config(tmp_path, sd3_folder, data__micro_batch="auto", data__rollout_batch=8)
    assert guardlit("plan", "--config", path) == 0
    assert "in 2 micro-batches of 8" in capsys.readouterr().out
