"""The round and its updates, through the command line on the tiny SD3 folder."""

from __future__ import annotations

import csv
import json
import resource
import signal
from pathlib import Path

import pytest
import torch
from brightness import Brightness
from runs import config, differing, guardlit, newest
from torch import Tensor
from watching import seen_outputs

from guardlit.advantage import group_relative
from guardlit.rounds.collector import Collector
from guardlit.training.module import GRPOModule
from guardlit.types import RewardRequest, RewardResult


@pytest.mark.parametrize("old_velocity", ["stored", "recomputed", "auto"])
def test_the_ratio_is_exactly_1_before_the_first_update_of_a_round(sd3_folder, tmp_path, monkeypatch, old_velocity):
    outputs = seen_outputs(monkeypatch)
    path = config(tmp_path, sd3_folder, model__old_velocity=old_velocity, trainer__max_epochs=2)
    assert guardlit("fit", "--config", path) == 0
    assert len(outputs) == 32
    for first in (0, 16):
        assert not any(bool(o["log_ratio"].any()) for o in outputs[first : first + 4])
        assert all(bool(o["log_ratio"].any()) for o in outputs[first + 4 : first + 16])


def test_the_output_contract(sd3_folder, tmp_path, monkeypatch):
    outputs = seen_outputs(monkeypatch)
    path = config(tmp_path, sd3_folder, model__kl={"weight": 0.1, "kind": "velocity"}, trainer__max_epochs=1)
    assert guardlit("fit", "--config", path) == 0
    expected = {
        "loss",
        "log_ratio",
        "raw_log_ratio",
        "norm_log_ratio",
        "clipped",
        "bounded",
        "advantage",
        "sample_weight",
    }
    assert set(outputs[0]) == expected | {"timestep", "step", "sample", "velocity_grad_norm", "kl"}
    assert {v.shape for k, v in outputs[0].items() if k != "loss"} == {(4,)}
    assert sorted({int(s) for o in outputs for s in o["step"]}) == [0, 1, 2, 3]
    # GRPO-Guard on-policy: |d loss_b / d v| = |A| |g| / dt |noise| / D, so flat but for the noise's length
    first = torch.cat([o["velocity_grad_norm"] / o["advantage"].abs() for o in outputs[:4]])
    beta = torch.tensor([1.0, *[1 + 0.7**2 / 2] * 3])[torch.cat([o["step"] for o in outputs[:4]])]
    torch.testing.assert_close(first / beta, (first / beta).mean().expand(16), rtol=0.25, atol=0)


def test_half_the_micro_batch_is_the_same_run(sd3_folder, tmp_path):
    """The accumulation follows from the micro-batch; the update does not change. Mixed timesteps at 8."""
    for size in (2, 4, 8):
        folder = tmp_path / str(size)
        folder.mkdir()
        path = config(folder, sd3_folder, data__micro_batch=size, data__rollout_batch=4, trainer__max_epochs=2)
        assert guardlit("fit", "--config", path) == 0
    states = [torch.load(newest(tmp_path / str(s)), weights_only=True)["state_dict"] for s in (2, 4, 8)]
    for other in states[1:]:
        # Adam's first steps divide rounding by rounding where a gradient is almost 0: compare against its step size
        for name, value in states[0].items():
            torch.testing.assert_close(value, other[name], rtol=0, atol=5e-4)
    moved = max(float(v.abs().max()) for k, v in states[0].items() if "lora_B" in k)
    assert moved > 2e-3


def test_gradients_of_a_micro_batch_and_of_its_halves_agree(sd3_folder, tmp_path, monkeypatch):
    """The sharp form: the first update's gradient, before Adam."""
    gradients: list[dict[str, Tensor]] = []
    original = GRPOModule.on_before_optimizer_step

    def keep(self: GRPOModule, optimizer: torch.optim.Optimizer) -> None:
        gradients.append({n: p.grad.clone() for n, p in self.named_parameters() if p.grad is not None})
        original(self, optimizer)

    monkeypatch.setattr(GRPOModule, "on_before_optimizer_step", keep)
    for size in (2, 4, 8, 16):
        folder = tmp_path / str(size)
        folder.mkdir()
        path = config(folder, sd3_folder, data__micro_batch=size, data__rollout_batch=4, trainer__max_steps=1)
        assert guardlit("fit", "--config", path) == 0
    scale = max(float(g.abs().max()) for g in gradients[0].values())
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-5 * scale)


def test_a_failed_reward_is_left_out_and_counted(sd3_folder, tmp_path, monkeypatch):
    outputs = seen_outputs(monkeypatch)
    reward = {"class_path": "brightness.Brightness", "init_args": {"fail": "two dogs"}}
    monkeypatch.setattr(Brightness, "score", _fail_one_image)
    monkeypatch.setattr(Collector, "_request", _numbered)
    path = config(tmp_path, sd3_folder, model__reward=reward, model__max_failed_fraction=0.2, trainer__max_epochs=1)
    path = _no_validation(path)
    assert guardlit("fit", "--config", path) == 0
    by_sample = {
        int(s): (float(a), float(w))
        for o in outputs
        for s, a, w in zip(o["sample"], o["advantage"], o["sample_weight"], strict=True)
    }
    assert by_sample[0] == (0.0, 0.0)
    rewards = torch.tensor([torch.nan, *[float(i) for i in range(1, 8)]])
    expected = group_relative(rewards, torch.arange(8) // 4)
    assert [by_sample[i][0] for i in range(8)] == pytest.approx(expected.tolist())
    row = next(r for r in _rows(tmp_path) if r["reward/failed"])
    assert float(row["reward/failed"]) == 1 / 8


def _numbered(self, trajectory, samples):
    """Put each image's index into its metadata."""
    images = self._setup.policy.decode(trajectory.final)
    return RewardRequest(images, ["a prompt"] * len(samples), [{"index": s} for s in samples])


def _fail_one_image(self, request):
    """Image 0 fails; the others score their own index."""
    indices = [m.get("index", 1) for m in request.metadata]
    return RewardResult.from_values(torch.tensor([torch.nan if i == 0 else float(i) for i in indices]))


def _no_validation(path: Path) -> Path:
    path.write_text(path.read_text().replace("val: ", "val: null # "))
    return path


def _rows(folder: Path) -> list[dict[str, str]]:
    with next(folder.rglob("metrics.csv")).open() as file:
        return list(csv.DictReader(file))


def test_too_many_failed_rewards_stop_the_run(sd3_folder, tmp_path, capsys):
    reward = {"class_path": "brightness.Brightness", "init_args": {"fail": "s"}}
    path = _no_validation(config(tmp_path, sd3_folder, model__reward=reward))
    assert guardlit("fit", "--config", path) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "of 8 rewards failed, more than max_failed_fraction=0.01; the first on prompt '" in said


def test_a_gold_or_validation_score_is_never_dropped(sd3_folder, tmp_path, capsys):
    reward = {"class_path": "brightness.Brightness", "init_args": {"fail": "dogs"}}
    path = config(tmp_path, sd3_folder, model__reward=reward, model__max_failed_fraction=1.0)
    assert guardlit("fit", "--config", path) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "reward 'brightness' failed in validation, first on prompt 'two dogs'; brightness: the score is no" in said


@pytest.mark.parametrize("where", ["loss", "backward"])
def test_nan_stops_before_the_weights_are_touched(sd3_folder, tmp_path, monkeypatch, capsys, where):
    weights: list[dict[str, Tensor]] = []
    original = GRPOModule._velocity

    def poisoned(self: GRPOModule, batch: object) -> Tensor:
        velocity = original(self, batch)
        if self.trainer.global_step == 5 and velocity.requires_grad:
            weights.append({n: p.detach().clone() for n, p in self.named_parameters() if p.requires_grad})
            if where == "loss":
                return velocity * torch.nan
            velocity.register_hook(lambda g: g * torch.nan)
        return velocity

    monkeypatch.setattr(GRPOModule, "_velocity", poisoned)
    modules: list[GRPOModule] = []
    monkeypatch.setattr(GRPOModule, "on_exception", lambda self, e: modules.append(self), raising=False)
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "gradient norm is nan at update 6, round 2: " in said
    assert ("the loss is nan at denoising step" in said and "prompt '" in said) == (where == "loss")
    assert "the weights were not touched" in said
    last = newest(tmp_path)
    assert said.endswith(f"; the last good checkpoint is {last}")
    assert last.stem == "round_00001"
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 4  # the round before is there to resume from


def test_a_run_folder_explains_itself(sd3_folder, tmp_path):
    path = config(tmp_path, sd3_folder, trainer__max_epochs=2, trainer__check_val_every_n_epoch=1)
    assert guardlit("fit", "--config", path) == 0
    folder = tmp_path / "runs/version_0"
    assert "8 images x 4 trained steps = 32" in (folder / "batches.txt").read_text()
    facts = json.loads((folder / "run.json").read_text())
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert facts["command"][:2] == ["guardlit", "fit"]
    with (folder / "schedule.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 5
    assert (folder / "config.yaml").is_file()
    rows = _rows(tmp_path)
    logged = {name for row in rows for name, value in row.items() if value}
    assert {"train/clip_above", "train/clip_below", "train/ratio_mean", "train/ratio_std", "train/grad_norm"} <= logged
    assert {"time/rollout_s", "time/reward_s", "time/update_s", "time/images_per_s", "reward/zero_std_share"} <= logged
    assert [int(r["step"]) for r in rows if r["val/reward"]] == [
        0,
        4,
        8,
    ]  # before the first update, and after each round
    assert [int(r["step"]) for r in rows if r["train/loss"]] == list(range(1, 9))

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert len(events.Scalars("train/grad_norm")) == 8


def test_a_full_disk_keeps_the_previous_checkpoint(sd3_folder, tmp_path, capsys):
    path = config(tmp_path, sd3_folder, trainer__max_epochs=1)
    assert guardlit("fit", "--config", path) == 0
    checkpoint = newest(tmp_path)
    before = checkpoint.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the kernel's "no more room" as an error, not a signal
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))
        code = guardlit("fit", "--config", path, "--ckpt_path", checkpoint, "--trainer.max_epochs", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "could not be written" in said
    assert checkpoint.read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))
    assert guardlit("fit", "--config", path, "--ckpt_path", checkpoint, "--trainer.max_epochs", 2) == 0


def test_validate_sample_and_export(sd3_folder, tmp_path, capsys):
    path = config(tmp_path, sd3_folder, trainer__max_epochs=1)
    assert guardlit("fit", "--config", path) == 0
    checkpoint = newest(tmp_path)
    assert guardlit("validate", "--config", path, "--ckpt_path", checkpoint) == 0
    assert "val/reward" in capsys.readouterr().out

    def draw(name: str, *options: object) -> dict[str, bytes]:
        out = tmp_path / name
        assert guardlit("sample", "--config", path, "--out", out, "--n", 2, *options) == 0
        return {p.name: p.read_bytes() for p in out.glob("*.png")}

    base, raw = draw("base"), draw("raw", "--ckpt_path", checkpoint, "--raw", "true")
    ema = draw("ema", "--ckpt_path", checkpoint)
    assert len(base) == 2 * 5 + 1
    assert base != raw != ema != base
    one = draw("one", "--prompts", "a red car")
    assert sorted(one) == ["000_a-red-car_0.png", "000_a-red-car_1.png", "grid.png"]

    out = tmp_path / "export"
    assert guardlit("export", "--config", path, "--ckpt_path", checkpoint, "--out", out) == 0
    assert sorted(p.parent.name for p in out.rglob("pytorch_lora_weights.safetensors")) == ["ema", "raw"]


def test_a_run_repeats_itself(sd3_folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert guardlit("fit", "--config", config(tmp_path / name, sd3_folder, trainer__max_epochs=1)) == 0
    assert differing(newest(tmp_path / "a"), newest(tmp_path / "b")) == []
