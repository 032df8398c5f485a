"""NaN and infinity: in an update, in a rollout, in a validation, in a reward."""

from __future__ import annotations

import csv
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from exploding import Falling, Snapshots
from lightning.pytorch.strategies import DDPStrategy
from runs import PROMPTS, config, guardlit, newest

from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.training.nonfinite import SCALER_PATIENCE, NonFiniteGuard, finite_weights

POISONED = [2, 5]
EMA = {"class_path": "guardlit_callbacks.TrainableEMA"}
WATCHING = [{"class_path": f"guardlit_callbacks.{name}"} for name in ("RatioDistribution", "GradientNorm")]
VELOCITY = "the policy's velocity is NaN or infinite at denoising step 0"
SPIKES = {"class_path": "guardlit_callbacks.GradientSpikes", "init_args": {"names": ["step", "sample"]}}


def poison(updates: list[int], **more: object) -> dict[str, object]:
    return {"class_path": "exploding.Poison", "init_args": {"updates": updates, **more}}


@pytest.fixture(scope="module")
def skipped(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run of 8 updates, two of which are NaN and skipped, under all that looks at updates; what it warned of."""
    folder = tmp_path_factory.mktemp("skipped")
    changes = {
        "model__nonfinite": "skip",
        "model__objective__init_args__clip_range": "auto",
        "model__lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}},
        "data__val": None,
        "trainer__max_epochs": 2,
        "trainer__callbacks": [EMA, *WATCHING, SPIKES, poison(POISONED), {"class_path": "exploding.Snapshots"}],
    }
    with pytest.warns(UserWarning, match="the update is skipped") as warned:
        assert guardlit("fit", "--config", config(folder, sd3_folder, **changes)) == 0
    return folder, list(Snapshots.taken), [str(w.message) for w in warned]


def test_a_skipped_update_leaves_weights_moments_and_averages_as_they_were(skipped):
    _, taken, _ = skipped
    assert len(taken) == 8
    for k in range(1, 8):
        before, after = taken[k - 1]["tensors"], taken[k]["tensors"]
        assert before.keys() == after.keys()
        kinds = {"ema/": False, "/exp_avg": False, "/step": False, "lora_B": False}
        for name in before:
            for kind in kinds:
                kinds[kind] |= kind in name and not torch.equal(before[name], after[name])
        assert set(kinds.values()) == {k not in POISONED}, k  # each kind moves in every other update
    assert all(bool(v.isfinite().all()) for v in taken[-1]["tensors"].values())


def test_a_skipped_update_counts_in_the_schedule_and_the_round(skipped):
    folder, taken, _ = skipped
    assert [t["lr"] for t in taken] == pytest.approx([1e-3 * 0.1**k for k in range(1, 9)])
    checkpoint = torch.load(newest(folder), weights_only=True)
    assert checkpoint["global_step"] == 8
    assert checkpoint["guardlit"]["nonfinite"] == {"skipped": 2, "in_a_row": 0}


def test_a_skipped_update_is_logged_and_told(skipped):
    folder, _, warned = skipped
    with next(folder.rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [float(row["train/skipped_updates"]) for row in rows] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert [row["train/grad_norm"] for row in rows].count("nan") == 2
    assert float(rows[-1]["train/clip_range"]) > 0  # calibrated from what was finite
    told = [line for line in warned if "the update is skipped" in line]
    assert len(told) == 2
    for update, round, line in zip(POISONED, (0, 1), told, strict=True):
        assert line.startswith(f"gradient norm is nan at update {update}, round {round}: the loss is nan at denoising ")
        assert any(f"prompt '{prompt}'" in line for prompt in PROMPTS)
    left_out = "samples of round 0 are left out: they hold NaN or infinity"
    assert any(line.startswith("RatioDistribution: 1 of 64 " + left_out) for line in warned), warned
    assert [
        line for line in warned if "gradient spike at step 2: norm nan; the largest velocity_grad_norm, nan" in line
    ]


def test_the_sample_that_is_blamed_is_the_one(skipped):
    """Two callbacks find it by ways of their own."""
    _, _, warned = skipped
    (spike,) = (line for line in warned if "gradient spike at step 5" in line)
    (skip,) = (line for line in warned if "at update 5" in line)
    step = spike.partition("is at step ")[2].partition(",")[0]
    assert f"at denoising step {step}, prompt" in skip


def test_too_many_in_a_row_stop_the_run(sd3_folder, tmp_path, capsys):
    changes = {"model__nonfinite": "skip", "model__max_skipped": 2, "data__val": None}
    changes["trainer__callbacks"] = [poison([0, 2, 3, 4])]
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **changes)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "gradient norm is nan at update 4, round 1: the loss is nan at denoising step" in said
    assert ", 3 times in a row, more than max_skipped=2 allows; the weights were not touched" in said
    assert said.endswith(f"the last good checkpoint is {newest(tmp_path)}")


# deciding on several processes, and under a loss scaler --------------------------------------------------------------


def fake_module(strategy: object = None, scaler: object = None, loss: float = 0.0) -> SimpleNamespace:
    outputs = {"loss": torch.tensor(loss), "log_ratio": torch.tensor([0.0, loss])}
    outputs |= {"step": torch.tensor([3, 4]), "sample": torch.tensor([0, 1])}
    alone = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    precision = SimpleNamespace(scaler=scaler)
    trainer = SimpleNamespace(strategy=strategy or alone, precision_plugin=precision, global_step=7)
    trainer.world_size = 2 if strategy else 1
    round = SimpleNamespace(index=1, prompt_of=lambda sample: SimpleNamespace(text=f"prompt of {sample}"))
    experience = SimpleNamespace(round=round)
    drop = SimpleNamespace(calls=0)

    def zero_grad(set_to_none: bool) -> None:
        drop.calls += set_to_none

    return SimpleNamespace(outputs=[outputs], trainer=trainer, experience=experience, zero_grad=zero_grad, drop=drop)


def test_an_overflow_is_the_loss_scaler_s_business_for_a_while():
    guard, module, infinite = NonFiniteGuard("stop", 3), fake_module(scaler=object()), torch.tensor(torch.inf)
    for _ in range(SCALER_PATIENCE):
        assert not guard.allows(module, infinite)
    assert module.drop.calls == guard.skipped == SCALER_PATIENCE
    with pytest.raises(NonFiniteError, match=r"inf at update 7.*43 times in a row, more than the loss scaler allows"):
        guard.allows(module, infinite)
    assert guard.allows(module, torch.tensor(1.0))
    assert not guard.allows(module, infinite)  # a finite one starts the count again
    with pytest.raises(NonFiniteError, match="the loss is nan at denoising step 4, prompt 'prompt of 1'"):
        guard.allows(fake_module(scaler=object(), loss=torch.nan), infinite)


def test_it_goes_on_from_a_checkpoint():
    guard, module, infinite = NonFiniteGuard("skip", 2), fake_module(), torch.tensor(torch.inf)
    assert not guard.allows(module, infinite)
    other = NonFiniteGuard("skip", 2)
    other.load_state_dict(guard.state_dict())
    assert not other.allows(module, infinite)
    with pytest.raises(NonFiniteError, match="3 times in a row"):
        other.allows(module, infinite)
    with pytest.raises(GuardlitError, match="max_skipped=0 must be at least 1"):
        NonFiniteGuard("skip", 0)


CASES = [  # action, whether a scaler is at work, and process 1's loss and gradient norm; those of process 0 are finite
    ("stop", True, torch.nan, 1.0),
    ("stop", True, 0.0, torch.inf),
    ("skip", False, torch.nan, torch.nan),
    ("skip", False, 0.0, 1.0),
]


def _decisions(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    said = []
    for action, scaled, loss, norm in CASES:
        strategy = DDPStrategy(parallel_devices=[torch.device("cpu")] * 2)
        module = fake_module(strategy, object() if scaled else None, loss if rank else 0.0)
        try:
            made = NonFiniteGuard(action, 3).allows(module, torch.tensor(norm if rank else 1.0))
            said.append(f"made {made}")
        except NonFiniteError as error:
            said.append(str(error).partition(": ")[2])
    (folder / str(rank)).write_text("\n".join(said))
    dist.destroy_process_group()


def test_two_processes_decide_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_decisions, (port, tmp_path), nprocs=2, start_method="fork")
    stop = "the loss is nan at denoising step 4, prompt 'prompt of 1'; the weights were not touched"
    for rank in "01":
        assert (tmp_path / rank).read_text().splitlines() == [stop, "made False", "made False", "made True"]


# before anything is scored --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a run of one good round, after a second one of which its weights are NaN."""
    every = {"class_path": "ModelCheckpoint", "init_args": {"save_top_k": -1, "save_on_train_epoch_end": True}}
    callbacks = [{"class_path": "exploding.Break", "init_args": {"round": 1}}, every]
    changes = {"model__reward": "exploding.Falling", "data__val": None, "trainer__callbacks": callbacks}
    return config(tmp_path_factory.mktemp("broken"), sd3_folder, **changes)


def test_broken_weights_are_found_before_their_images_are_scored(broken: Path, capsys, monkeypatch):
    requests = []
    original = Falling.score
    monkeypatch.setattr(Falling, "score", lambda self, r: requests.append(len(r)) or original(self, r))
    assert guardlit("fit", "--config", broken) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"round 2, rank 0: {VELOCITY} (sigma 1), prompt '" in said
    assert any(f"prompt '{prompt}'" in said for prompt in PROMPTS)
    assert sum(requests) == 16  # two rounds of 8 images
    written = {p.name: finite_weights(p) for p in broken.parent.rglob("*.ckpt")}
    assert written == {"epoch=0-step=4.ckpt": True, "epoch=1-step=8.ckpt": False}
    assert said.endswith(f"the last good checkpoint is {next(broken.parent.rglob('epoch=0-step=4.ckpt'))}")


def test_images_of_broken_weights_are_neither_validated_nor_written(broken: Path, tmp_path, capsys):
    settings = ("--config", broken, "--ckpt_path", next(broken.parent.rglob("epoch=1-step=8.ckpt")))
    settings = (*settings, "--data.val", broken.parent / "prompts.txt")
    for command, more in (("validate", ()), ("sample", ("--out", tmp_path))):
        assert guardlit(command, *settings, *more) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"guardlit {command}: error: {VELOCITY}")
    assert not list(tmp_path.rglob("*.png"))


def test_an_infinite_reward_is_a_failed_one(sd3_folder, tmp_path):
    changes = {"model__reward": "exploding.Infinite", "model__max_failed_fraction": 0.25, "data__val": None}
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, trainer__max_epochs=1, **changes)) == 0
    with next(tmp_path.rglob("metrics.csv")).open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["reward/failed"])
    assert float(row["reward/failed"]) == 2 / 8
    assert 0 < float(row["reward/infinite_mean"]) < 1


def test_a_checkpoint_that_cannot_be_read_has_no_finite_weights(tmp_path):
    (tmp_path / "torn.ckpt").write_bytes(b"PK\x03\x04")
    assert not finite_weights(tmp_path / "torn.ckpt")
    assert not finite_weights(tmp_path / "missing.ckpt")
