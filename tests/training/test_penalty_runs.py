"""Runs with a gate, a schedule and a reference that is renewed: resumed, and on several processes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import forked
from runs import EVERY_UPDATE, config, differing, guardlit, newest
from torch import Tensor
from watching import raise_after, seen_outputs

from guardlit.checkpoints.io import SafeCheckpointIO

TERMS = [
    {"scorer": "brightness.Contrast", "divide": -1, "name": "proxy"},
    {"scorer": "brightness.Contrast", "weight": 0},
]
"""They never agree, so that every round has images to gate, and the mean uncertainty is always the same."""
KL = {
    "weight": 0.5,
    "kind": "wasserstein",
    "step_weights": [1, 1, 0.5, 0],
    "gate": {"proxy": "proxy"},
    "renew_every": 1,
}
REWARD = {"class_path": "Composite", "init_args": {"terms": TERMS}}
CHANGES = {"model__kl": KL, "model__reward": REWARD, "trainer__callbacks": [EVERY_UPDATE], "trainer__max_epochs": 2}
FULL = {"model__policy__init_args__lora": None, "model__policy__init_args__reference": True}
UPDATES = 8


def penalty(checkpoint: Path) -> dict[str, Any]:
    """The penalty's part of a checkpoint."""
    return torch.load(checkpoint, weights_only=True)["guardlit"]["penalty"]


def logged(folder: Path, key: str) -> list[float]:
    """A key's values in the order in which they were logged."""
    with next(folder.rglob("metrics.csv")).open(newline="") as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


@pytest.fixture(scope="module", params=["lora", "full"])
def undisturbed(request: pytest.FixtureRequest, sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """The YAML of a run of two rounds, its checkpoints by name, and what its micro-batches left."""
    folder = tmp_path_factory.mktemp(request.param)
    path = config(folder, sd3_folder, **CHANGES, **(FULL if request.param == "full" else {}))
    with pytest.MonkeyPatch.context() as patch:
        outputs = seen_outputs(patch)
        assert guardlit("fit", "--config", path) == 0
    return path, {p.stem: p for p in (folder / "runs/version_0/checkpoints").glob("*.ckpt")}, outputs


def test_the_reference_is_the_policy_at_the_start_of_the_round(undisturbed):
    path, checkpoints, outputs = undisturbed
    assert "reference" not in penalty(checkpoints["update_3"]) or not penalty(checkpoints["update_3"])["reference"]
    for update in (5, 8):
        found, trained = (torch.load(checkpoints[f"update_{n}"], weights_only=True) for n in (update, 4))
        reference = found["guardlit"]["penalty"]["reference"]
        assert reference
        weights = {name.removeprefix("policy.transformer."): value for name, value in trained["state_dict"].items()}
        assert all(torch.equal(value, weights[name]) for name, value in reference.items() if name in weights)
        assert len(reference.keys() & weights.keys()) == len(weights)
    # so a round's first update is at a distance of 0, and the others are not
    for start in (0, 16):
        assert not any(bool(o["kl"].any()) for o in outputs[start : start + 4])
        assert any(bool(o["kl"].any()) for o in outputs[start + 4 : start + 16])
    runs = path.parent / "runs"
    assert logged(runs, "reference/renewed_round") == [0, 2]
    assert all(0 < gated <= 0.5 for gated in logged(runs, "train/kl_gated"))
    assert logged(runs, "train/kl_gate_fraction") == [pytest.approx(0.1)] * 2


@pytest.mark.parametrize("stop", ["update_4", "update_6"])
def test_a_resumed_run_equals_the_uninterrupted_one(undisturbed, stop: str, tmp_path: Path):
    path, checkpoints, _ = undisturbed
    resumed = ("--ckpt_path", checkpoints[stop], "--trainer.default_root_dir", tmp_path)
    assert guardlit("fit", "--config", path, *resumed) == 0
    last = newest(tmp_path, f"update_{UPDATES}*.ckpt")
    assert differing(checkpoints[f"update_{UPDATES}"], last) == []
    ours, theirs = penalty(last), penalty(checkpoints[f"update_{UPDATES}"])
    assert ours["gate"] == theirs["gate"]
    assert all(torch.equal(ours["reference"][name], value) for name, value in theirs["reference"].items())


def test_a_signal_between_updates_loses_nothing(undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Within an update of the second round: gate, image weights and renewed reference are in the checkpoint."""
    path, checkpoints, _ = undisturbed
    raise_after(monkeypatch, "on_train_batch_end", 22)
    assert guardlit("fit", "--config", path, "--trainer.default_root_dir", tmp_path) == 143
    monkeypatch.undo()
    saved = next(tmp_path.rglob("interrupted.ckpt"))
    assert len(penalty(saved)["gate"]["means"]) == 2
    assert guardlit("fit", "--config", path, "--ckpt_path", saved, "--trainer.default_root_dir", tmp_path) == 0
    assert differing(checkpoints[f"update_{UPDATES}"], newest(tmp_path, f"update_{UPDATES}*.ckpt")) == []


def test_a_checkpoint_of_before_the_penalty_had_parts_still_loads(undisturbed, tmp_path: Path):
    path, checkpoints, _ = undisturbed
    older = torch.load(checkpoints["update_2"], weights_only=True)
    del older["guardlit"]["penalty"]
    torch.save(older, tmp_path / "older.ckpt")
    runs = tmp_path / "runs"
    resumed = ("--ckpt_path", tmp_path / "older.ckpt", "--trainer.default_root_dir", runs)
    assert guardlit("fit", "--config", path, *resumed) == 0
    assert logged(runs, "reference/renewed_round")[-1] == 2


def test_parts_without_effect_change_no_bit(sd3_folder: Path, tmp_path: Path):
    """Weights of 1, and a reference that is never due: the run of the plain penalty."""
    kinds = {"plain": {"weight": 0.5}, "ones": {"weight": 0.5, "step_weights": [1], "renew_every": 9}}
    for name, kl in kinds.items():
        (tmp_path / name).mkdir()
        path = config(tmp_path / name, sd3_folder, **CHANGES | {"model__kl": kl})
        assert guardlit("fit", "--config", path) == 0
    plain, ones = (newest(tmp_path / name) for name in kinds)
    assert differing(plain, ones, ("state_dict", "optimizer_states")) == []
    assert "penalty" not in torch.load(plain, weights_only=True)["guardlit"]


def test_the_base_stays_what_is_measured(sd3_folder: Path, tmp_path: Path):
    """`KLFromBase` grows from round to round, while the reference follows the policy."""
    changes = {
        "trainer__callbacks": [{"class_path": "guardlit_callbacks.KLFromBase"}],
        "trainer__check_val_every_n_epoch": 1,
        "model__evaluation": {"num_inference_steps": 5, "guidance_scale": 1.0},
        "model__kl": {**KL, "weight": 1e-3},
    }
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, **CHANGES | changes)) == 0
    values = logged(tmp_path / "runs", "kl/from_base")
    assert values[0] == 0 < values[1] < values[2]


@pytest.mark.parametrize(
    ("kl", "line"),
    [
        ({**KL, "gate": {"proxy": "ocr"}}, "kl.gate.proxy=ocr is no term of the reward"),
        ({**KL, "step_weights": [0]}, "kl.step_weights=[0.0] are 0 at every trained step, 0 to 3"),
    ],
)
def test_a_mistake_is_one_line_of_both_commands(
    kl: dict, line: str, sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = config(tmp_path, sd3_folder, **CHANGES | {"model__kl": kl})
    for command in ("plan", "fit"):
        assert guardlit(command, "--config", path) == 2
        assert line in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_reference_needs_a_base(sd3_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = config(tmp_path, sd3_folder, **CHANGES, model__policy__init_args__lora=None)
    assert guardlit("fit", "--config", path) == 2
    assert "set policy.reference: true" in capsys.readouterr().err.strip().splitlines()[-1]


def test_the_plan_counts_the_reference(sd3_folder: Path, tmp_path: Path):
    from guardlit.commands.plan import planned
    from guardlit.planning.estimate import estimate

    parts = []
    for name, kl in {"without": {**KL, "renew_every": None}, "with": KL}.items():
        (tmp_path / name).mkdir()
        run = planned(["--config", str(config(tmp_path / name, sd3_folder, **CHANGES | {"model__kl": kl}))])
        parts.append(estimate(run).memory.parts)
    assert parts[1]["old policy, reference"] == 2 * parts[0]["old policy, reference"] > 0
    assert parts[1]["trained weights"] == parts[0]["trained weights"]


# several processes ----------------------------------------------------------------------------------------------------

ALONE = {
    **CHANGES,
    "model__rollout": {"num_inference_steps": 3, "guidance_scale": 1.0},
    "data__micro_batch": 1,
    "data__rollout_batch": 1,
    "model__reward": {
        "class_path": "Composite",
        "init_args": {
            "terms": [
                {**TERMS[0], "scorer": {"class_path": "brightness.Contrast", "init_args": {"levels": 200}}},
                TERMS[1],
            ]
        },
    },
}
"""One image and one transition at a time, or kernels would round otherwise for another batch.

The score that is trained on is coarse, so that rounding does not matter."""


def state(folder: Path) -> dict[str, Tensor]:
    """Trained weights and the reference at the end of a run."""
    found = SafeCheckpointIO().load_checkpoint(newest(folder), map_location="cpu")
    return found["state_dict"] | {f"reference {k}": v for k, v in found["guardlit"]["penalty"]["reference"].items()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of all numbers of two states, relative to the first."""
    assert one.keys() == other.keys()
    differences = [(other[k] - v).double().square().sum() for k, v in one.items()]
    return float((sum(differences) / sum(v.double().square().sum() for v in one.values())).sqrt())


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "strategy"),
    [
        ("lora", "ddp"),
        ("full", "fsdp"),
        pytest.param("lora", "fsdp", marks=pytest.mark.slow),
        pytest.param("full", "ddp", marks=pytest.mark.slow),
    ],
)
def test_two_processes_make_the_run_of_one(kind: str, strategy: str, sd3_folder: Path, tmp_path: Path):
    several = ("--trainer.devices", 2, "--trainer.strategy", strategy)
    for name, args in {"one": (), "two": several}.items():
        (tmp_path / name).mkdir()
        path = config(tmp_path / name, sd3_folder, **ALONE, **(FULL if kind == "full" else {}))
        started = forked(tmp_path / name, "fit", "--config", path, *args, processes=2 if args else 1)
        codes = started.wait(400)
        assert set(codes) == {0}, started.last(0)
    one, two = (state(tmp_path / name) for name in ("one", "two"))
    assert any(name.startswith("reference") for name in one)
    assert distance(one, two) <= 1e-6
    gated = [logged(tmp_path / name, "train/kl_gated") for name in ("one", "two")]
    assert gated[0] == gated[1]
    assert max(gated[0]) > 0
