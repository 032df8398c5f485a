"""Each run has its own folder, and a rehearsal has none."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from full_run import all_callbacks, fit
from guardlit_callbacks import RatioDistribution
from guardlit_callbacks.tools.folders import new_folder, run_dir
from guardlit_callbacks.tools.lightning import Trainer
from toy_flow import Rounds, ToyFlow, transitions


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def train(make_trainer, folder, ckpt=None, **options):
    trainer = make_trainer(RatioDistribution(draw_every=0), default_root_dir=folder, **options)
    trainer.fit(ToyFlow(), Rounds(transitions()), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_rehearsal_writes_nothing(make_trainer, monkeypatch, tmp_path):
    fit(make_trainer, tmp_path, all_callbacks(), monkeypatch, max_epochs=2)
    before = contents(tmp_path)
    assert Path("lightning_logs/version_0/gold.csv") in before
    monkeypatch.chdir(tmp_path)
    trainer = fit(make_trainer, tmp_path, all_callbacks(), monkeypatch, fast_dev_run=True)
    assert run_dir(trainer) is None
    assert contents(tmp_path) == before


def test_without_a_logger_each_run_has_a_new_folder(make_trainer, tmp_path):
    train(make_trainer, tmp_path)
    before = contents(tmp_path)
    trainer = train(make_trainer, tmp_path)
    assert run_dir(trainer) == tmp_path / "lightning_logs/version_1"
    after = contents(tmp_path)
    assert sorted(map(str, after)) == [f"lightning_logs/version_{k}/ratio/round_00001.npz" for k in (0, 1)]
    assert {path: after[path] for path in before} == before


def test_a_logger_whose_version_never_changes_does_not_make_two_runs_one(make_trainer, recorder, tmp_path):
    train(make_trainer, tmp_path, logger=recorder)
    assert list(map(str, contents(tmp_path))) == ["recorder/version_0/ratio/round_00001.npz"]
    second = train(make_trainer, tmp_path, logger=recorder)
    assert run_dir(second) == tmp_path / "recorder/version_0-0"
    second.save_checkpoint(tmp_path / "end.ckpt")
    resumed = train(make_trainer, tmp_path, tmp_path / "end.ckpt", logger=recorder, max_epochs=2)
    assert run_dir(resumed) == tmp_path / "recorder/version_0"  # the same run continues


def test_one_trainer_keeps_its_folder_until_its_logger_changes(make_trainer, recorder, tmp_path):
    trainer = make_trainer(default_root_dir=tmp_path)
    first = run_dir(trainer)
    assert run_dir(trainer) == first == tmp_path / "lightning_logs/version_0"
    trainer.logger = recorder
    assert run_dir(trainer) == tmp_path / "recorder/version_0"


@pytest.mark.parametrize("named", ["mine", None])
def test_a_class_of_trainer_may_name_the_folder(named, tmp_path):
    class Mine(Trainer):
        @property
        def log_dir(self):
            return named

    trainer = Mine(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    assert run_dir(trainer) == (Path(named) if named else None)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_start_at_once_get_different_folders(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(new_folder, [tmp_path / "runs"] * 24))
    assert {path.name for path in made} == {f"version_{k}" for k in range(24)}
    (tmp_path / "runs/version_later").mkdir()
    assert new_folder(tmp_path / "runs").name == "version_24"
