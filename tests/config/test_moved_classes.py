"""Class paths of YAML files: short names work, and a path of before a move is one line that names key and new path."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from runs import guardlit

from guardlit.commands.lightning_cli import settings_of

TINY = Path(__file__).parents[2] / "configs/tiny_digits.yaml"
MOVED = {
    "guardlit.export.ExportAtEnd": "guardlit.training.export.ExportAtEnd",
    "guardlit.rollback.Rollback": "guardlit.training.recovery.rollback.Rollback",
    "guardlit.interrupt.SignalGuard": "guardlit.training.recovery.signals.SignalGuard",
}


def written(folder: Path, **sections: object) -> Path:
    path = folder / "saved.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.mark.parametrize("name", ["ExportAtEnd", "Rollback", "TrainableEMA", "SampleGrid", "DriftSentinels"])
def test_callbacks_have_short_names(name: str, tmp_path: Path):
    saved = written(tmp_path, trainer={"callbacks": [name]})
    (callback,) = settings_of(["fit", "--config", str(TINY), "--config", str(saved)])["trainer"]["callbacks"]
    assert callback["class_path"].rpartition(".")[2] == name


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_callback_is_one_line(old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    saved = written(tmp_path, trainer={"callbacks": [{"class_path": old}]})
    assert guardlit("fit", "--config", TINY, "--config", saved) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{saved}:3: trainer.callbacks: '{old}' is no known Callback" in line
    assert line.endswith(f"did you mean {MOVED[old]} (in short, {old.rpartition('.')[2]})?")


@pytest.mark.parametrize(
    ("section", "key", "new"),
    [
        ({"model": {"reward": {"class_path": "guardlit.rewards.pickscore.PickScore"}}}, "model.reward",
         "guardlit.rewards.clip.pickscore.PickScore"),
        ({"model": {"rollout": {"window": {"class_path": "guardlit.windows.RandomWindow"}}}}, "model.rollout.window",
         "guardlit.rounds.windows.RandomWindow"),
        ({"trainer": {"strategy": {"class_path": "guardlit.sharding.ShardedStrategy"}}}, "trainer.strategy",
         "guardlit.training.sharded_strategy.ShardedStrategy"),
    ],
)  # fmt: skip
def test_other_moved_classes_are_one_line(section, key: str, new: str, tmp_path: Path, capsys):
    assert guardlit("fit", "--config", TINY, "--config", written(tmp_path, **section)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f": {key}: " in line
    assert f"did you mean {new} (in short, " in line
