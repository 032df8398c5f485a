"""Two ranks, by torchrun on gloo: their run is that of one rank."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from runs import config, differing, guardlit, newest, two_ranks

from guardlit.training.update.clip_calibration import ALL


def test_two_ranks_make_the_updates_of_one(sd3_folder: Path, tmp_path: Path):
    callbacks = [
        {"class_path": "guardlit_callbacks.TrainableEMA"},
        {"class_path": "guardlit.training.export.ExportAtEnd"},
        {"class_path": "guardlit_callbacks.SampleGrid"},
    ]
    # plain gradient descent: Adam would blow rounding up where a gradient is almost 0
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 10.0}}
    changes = {"trainer__max_epochs": 1, "trainer__callbacks": callbacks, "model__optimizer": sgd}
    paths = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths[name] = config(tmp_path / name, sd3_folder, data__micro_batch=2, data__rollout_batch=2, **changes)
    assert guardlit("fit", "--config", paths["one"]) == 0
    assert two_ranks(Path(__file__).parents[1] / "support" / "several.py", paths["two"]).returncode == 0
    assert all(last.endswith("exit code 0") for last in said(tmp_path / "two"))
    states = {}
    for name in paths:
        states[name] = torch.load(newest(tmp_path / name), weights_only=True)["state_dict"]
        (run,) = (tmp_path / name / "runs").iterdir()  # one folder for all ranks, with all files
        assert run.name == "version_0"
        assert len(list(run.glob("export/*/pytorch_lora_weights.safetensors"))) == 2
        assert {"config.yaml", "run.json", "metrics.csv", "checkpoints"} <= {path.name for path in run.iterdir()}
    moved = max(float(v.abs().max()) for k, v in states["one"].items() if "lora_B" in k)
    assert moved > 1e-3
    for name, value in states["one"].items():
        torch.testing.assert_close(states["two"][name], value, rtol=1e-4, atol=1e-5 * moved)


def _on_rank_1(name: str, **settings: object) -> dict[str, object]:
    return {"class_path": f"exploding.{name}", "init_args": {"rank": 1, **settings}}


BACK = {"class_path": "guardlit.training.recovery.rollback.Rollback", "init_args": {"gold": None}}
NUMBERS = {  # what fails on rank 1 only
    "skipped": {"model__nonfinite": "skip", "trainer__callbacks": [_on_rank_1("Poison", updates=[1, 5])]},
    "broken": {"trainer__callbacks": [_on_rank_1("Break", round=0)]},
    "back": {"trainer__callbacks": [_on_rank_1("Poison", updates=[5], above_lr=6e-4), BACK]},
}


@pytest.fixture(scope="module")
def failed(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of one-round runs on two ranks, where rank 1 has a scorer that fails in some way."""
    folders = {how: tmp_path_factory.mktemp(how) for how in ("first", "raise", "hopeless")}
    settings = {"data__micro_batch": 2, "data__val": None, "trainer__max_epochs": 1, "model__max_failed_fraction": 0.13}
    paths = []
    for how, folder in folders.items():
        reward = {"class_path": "background.Background", "init_args": {"rank": 1, "how": how}}
        paths.append(config(folder, sd3_folder, model__reward=reward, **settings))
    for how, changes in NUMBERS.items():
        folders[how] = tmp_path_factory.mktemp(how)
        paths.append(config(folders[how], sd3_folder, **{**settings, "trainer__max_epochs": 2, **changes}))
    assert two_ranks(Path(__file__).parents[1] / "support" / "several.py", *paths).returncode == 0
    return folders


def said(folder: Path) -> list[str]:
    """The last line of each rank, and its exit code."""
    return [" ".join((folder / f"process_{rank}.txt").read_text().splitlines()[-2:]) for rank in range(2)]


def test_a_sample_that_fails_on_one_rank_is_left_out_on_both(failed):
    assert all(last.endswith("exit code 0") for last in said(failed["first"])), said(failed["first"])
    with next(failed["first"].rglob("metrics.csv")).open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["reward/failed"])
    assert float(row["reward/failed"]) == 1 / 8
    assert float(row["reward/background/requests"]) == 4  # two on each rank
    assert float(row["reward/background/latency_p95"]) == 1  # the larger of 0 and 1


TOO_MANY = "round 1: 4 of 8 rewards failed, more than max_failed_fraction=0.13; the first on prompt '"
NEVER = "round 1, rank 1: reward 'background' failed on images of '"


@pytest.mark.parametrize(("how", "expected"), [("raise", TOO_MANY), ("hopeless", NEVER)])
def test_a_scorer_that_raises_on_one_rank_stops_both(failed, how: str, expected: str):
    one, two = said(failed[how])
    assert one == two
    assert one.startswith("guardlit fit: error: " + expected)
    assert all(part in one for part in ("rank 1", "the wires are cut"))
    assert one.endswith("exit code 2")


def test_both_skip_an_update_that_is_nan_on_one(failed):
    assert all(last.endswith("exit code 0") for last in said(failed["skipped"])), said(failed["skipped"])
    checkpoint = torch.load(newest(failed["skipped"]), weights_only=True)
    assert checkpoint["guardlit"]["nonfinite"] == {"skipped": 2, "in_a_row": 0}
    assert all(bool(v.isfinite().all()) for v in checkpoint["state_dict"].values())
    steps = [s["step"].item() for s in checkpoint["optimizer_states"][0]["state"].values()]
    assert set(steps) == {6}  # of 8 updates
    assert (
        "at update 2, round 1: the loss is nan at denoising step" in (failed["skipped"] / "process_0.txt").read_text()
    )


def test_both_stop_over_images_that_one_cannot_draw(failed):
    one, two = said(failed["broken"])
    assert one == two
    assert "round 2, rank 1: the policy's velocity is NaN or infinite at denoising step 0" in one
    assert one.endswith("exit code 2")


def test_both_roll_back_to_the_checkpoint(failed):
    assert all(last.endswith("exit code 0") for last in said(failed["back"])), said(failed["back"])
    saved = torch.load(newest(failed["back"]), weights_only=True)
    assert (saved["global_step"], saved["callbacks"]["Rollback"]["rollbacks"]) == (8, 1)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(5e-4)
    assert "good_4.ckpt, learning rates x 0.5" in (failed["back"] / "process_0.txt").read_text()


STOP = {"class_path": "background.Stop", "init_args": {"batch": 5}}


@pytest.fixture(scope="module")
def stopped(sd3_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs on two ranks: undisturbed, stopped within the second update, and resumed from there."""
    folders = {how: tmp_path_factory.mktemp(how) for how in ("whole", "stopped", "resumed")}
    objective = {"class_path": "GRPOGuard", "init_args": {"clip_range": "auto"}}
    settings = {"model__objective": objective, "data__micro_batch": 2, "data__val": None, "trainer__max_steps": 2}
    checkpoint = folders["stopped"] / "runs/version_0/checkpoints/interrupted.ckpt"
    more = {"stopped": {"trainer__callbacks": [STOP]}, "resumed": {"ckpt_path": str(checkpoint)}}
    for how in more.keys() | folders.keys():
        config(folders[how], sd3_folder, **settings, **({"trainer__callbacks": []} | more.get(how, {})))
    paths = [folder / "run.yaml" for folder in folders.values()]
    assert two_ranks(Path(__file__).parents[1] / "support" / "several.py", *paths).returncode == 0
    return folders


def test_two_ranks_resume_within_an_update_with_the_log_ratios_of_both(stopped):
    """The clip range that is calibrated from them is that of the undisturbed run, bit for bit."""
    assert [line.endswith("exit code 143") for line in said(stopped["stopped"])] == [True, True]
    assert [line.endswith("exit code 0") for line in said(stopped["resumed"])] == [True, True]
    whole, resumed = newest(stopped["whole"]), newest(stopped["resumed"])
    assert differing(whole, resumed, ("callbacks",)) == []
    found = [torch.load(path, weights_only=True)["callbacks"]["ClipCalibration"] for path in (whole, resumed)]
    limits = [calibration["limits"][ALL]["limit"] for calibration in found]
    assert limits[0] == limits[1] > 0
