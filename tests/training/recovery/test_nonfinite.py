"""NaN and infinity: in an update, in a rollout, in a validation, in a reward."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from exploding import Falling, Snapshots
from forked import on_ranks
from runs import PROMPTS, config, guardlit, newest
from torch import Tensor

from guardlit.checkpoints.finite import finite_weights
from guardlit.errors import GuardlitError, NonFiniteError
from guardlit.processes.world import World
from guardlit.rounds.plan import RoundPlan
from guardlit.rounds.round import Round
from guardlit.training.recovery.nonfinite import SCALER_PATIENCE, NonFiniteGuard
from guardlit.types import Prompt

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


def test_a_skipped_update_is_logged_and_lines(skipped):
    folder, _, warned = skipped
    with next(folder.rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [float(row["train/skipped_updates"]) for row in rows] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert [row["train/grad_norm"] for row in rows].count("nan") == 2
    assert float(rows[-1]["train/clip_range"]) > 0  # calibrated from what was finite
    lines = [line for line in warned if "the update is skipped" in line]
    assert len(lines) == 2
    for update, round, line in zip(POISONED, (1, 2), lines, strict=True):
        assert line.startswith(
            f"gradient norm is nan at update {update + 1}, round {round}: the loss is nan at denoising "
        )
        assert any(f"prompt '{prompt}'" in line for prompt in PROMPTS)
    left_out = "samples of round 1 are left out: they hold NaN or infinity"
    assert any(line.startswith("RatioDistribution: 1 of 64 " + left_out) for line in warned), warned
    assert [
        line for line in warned if "gradient spike at step 2: norm nan; the largest velocity_grad_norm, nan" in line
    ]


def test_the_sample_that_is_blamed_is_the_one(skipped):
    """Two callbacks find it independently."""
    _, _, warned = skipped
    (spike,) = (line for line in warned if "gradient spike at step 6" in line)
    (skip,) = (line for line in warned if "at update 6" in line)
    step = spike.partition("is at step ")[2].partition(",")[0]
    assert f"at denoising step {step}, prompt" in skip


def test_too_many_in_a_row_stop_the_run(sd3_folder, tmp_path, capsys):
    changes = {"model__nonfinite": "skip", "model__max_skipped": 2, "data__val": None}
    changes["trainer__callbacks"] = [poison([0, 2, 3, 4])]
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **changes)) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "gradient norm is nan at update 5, round 2: the loss is nan at denoising step" in said
    assert ", 3 times in a row, more than max_skipped=2 allows; the weights were not touched" in said
    assert said.endswith(f"the last good checkpoint is {newest(tmp_path)}")


# deciding on several ranks, and under a loss scaler ------------------------------------------------------------------


ROUND = Round(1, [Prompt("a cat"), Prompt("a dog")], [], RoundPlan(2, 2, 1, 1, 2, 1), seed=0)
INFINITE, WORLD = torch.tensor(torch.inf), World.single()


def outputs(loss: float = 0.0) -> list[dict[str, Tensor]]:
    """A micro-batch whose second row has a log ratio of that value."""
    rows = {"log_ratio": torch.tensor([0.0, loss]), "step": torch.tensor([3, 4]), "sample": torch.tensor([0, 2])}
    return [{"loss": torch.tensor(loss), **rows}]


def test_an_overflow_is_left_to_the_loss_scaler_for_a_while():
    guard = NonFiniteGuard("stop", 3)

    def allows(norm: Tensor, loss: float = 0.0) -> bool:
        return guard.allows(outputs(loss), norm, 7, ROUND, WORLD, scaled=True)

    for _ in range(SCALER_PATIENCE):
        assert not allows(INFINITE)
    assert guard.skipped == SCALER_PATIENCE
    with pytest.raises(NonFiniteError, match=r"inf at update 8.*43 times in a row, more than the loss scaler allows"):
        allows(INFINITE)
    assert allows(torch.tensor(1.0))
    assert not allows(INFINITE)  # a finite one starts the count again
    with pytest.raises(NonFiniteError, match="round 2: the loss is nan at denoising step 4, prompt 'a dog'"):
        allows(INFINITE, torch.nan)


def test_an_overflow_without_a_scaler_stops():
    with pytest.raises(NonFiniteError, match="the losses are finite, the backward pass is not; the weights were not"):
        NonFiniteGuard("stop", 3).allows(outputs(), INFINITE, 7, ROUND, WORLD)


def test_it_resumes_from_a_checkpoint():
    guard = NonFiniteGuard("skip", 2)
    with pytest.warns(UserWarning, match=r"the update is skipped \(1 so far\)"):
        assert not guard.allows(outputs(), INFINITE, 7, ROUND, WORLD)
    other = NonFiniteGuard("skip", 2)
    other.load_state_dict(guard.state_dict())
    with pytest.warns(UserWarning, match=r"the update is skipped \(2 so far\)"):
        assert not other.allows(outputs(), INFINITE, 8, ROUND, WORLD)
    with pytest.raises(NonFiniteError, match="3 times in a row"):
        other.allows(outputs(), INFINITE, 9, ROUND, WORLD)
    with pytest.raises(GuardlitError, match="max_skipped=0 must be at least 1"):
        NonFiniteGuard("skip", 0)


CASES = [  # action, whether a loss scaler is in use, and rank 1's loss and gradient norm; those of rank 0 are finite
    ("stop", True, torch.nan, 1.0),
    ("stop", True, 0.0, torch.inf),
    ("skip", False, torch.nan, torch.nan),
    ("skip", False, 0.0, 1.0),
]


def _decisions(world: World) -> list[str]:
    found = []
    for action, scaled, loss, norm in CASES:
        mine = (outputs(loss if world.rank else 0.0), torch.tensor(norm if world.rank else 1.0))
        try:
            found.append(f"made {NonFiniteGuard(action, 3).allows(*mine, 7, ROUND, world, scaled)}")
        except NonFiniteError as error:
            found.append(str(error).partition(": ")[2])
    return found


def test_two_ranks_decide_alike():
    stop = "the loss is nan at denoising step 4, prompt 'a dog'; the weights were not touched"
    assert on_ranks(_decisions) == [[stop, "made False", "made False", "made True"]] * 2


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
    assert f"round 3, rank 0: {VELOCITY} (sigma 1), prompt '" in said
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
    assert 0 < float(row["average_reward/infinite"]) < 1


def test_a_checkpoint_that_cannot_be_read_has_no_finite_weights(tmp_path):
    (tmp_path / "torn.ckpt").write_bytes(b"PK\x03\x04")
    assert not finite_weights(tmp_path / "torn.ckpt")
    assert not finite_weights(tmp_path / "missing.ckpt")
