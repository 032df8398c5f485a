"""A run's settings, from live objects, under the names that a report gives them; TensorBoard's tab HParams."""

from __future__ import annotations

from pathlib import Path

import pytest
import script
from runs import PROMPTS, config, guardlit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from guardlit.commands.report import SUMMARY
from guardlit.training.logs.settings import FIRST, METRICS

EXPECTED = {
    "reward": "jpeg_compressibility",
    "objective": "GRPOGuard",
    "clip range": "0.0001",
    "KL weight": 0.0,
    "optimizer": "AdamW",
    "learning rate": 1e-3,
    "LoRA rank": 4.0,
    "sampling steps": 5.0,
    "guidance scale": 1.0,
    "prompts per round": 2.0,
    "images per prompt": 4.0,
    "updates per round": 4.0,
    "rounds": 1.0,
    "seed": 42.0,
}


def hparams(run: Path) -> dict[str, HParamsPluginData]:
    """What TensorBoard's tab reads from a run's folder, by tag."""
    events = EventAccumulator(str(run))
    events.Reload()
    contents = events.PluginTagToContent("hparams")
    return {tag.rpartition("/")[2]: HParamsPluginData.FromString(content) for tag, content in contents.items()}


def row(found: HParamsPluginData) -> dict[str, float | str]:
    """The settings of a session."""
    values = found.session_start_info.hparams
    return {name: value.string_value or value.number_value for name, value in values.items()}


def test_the_settings_are_those_of_a_report_from_a_script_too(sd3_folder: Path, tmp_path: Path):
    assert guardlit("fit", "--config", config(tmp_path, sd3_folder, trainer__max_epochs=1)) == 0
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    script.train(tmp_path, sd3_folder, max_epochs=1)
    for run in (tmp_path / "runs/version_0", tmp_path / "script/version_0"):
        found = hparams(run)
        settings = row(found["session_start_info"])
        assert settings == {"model": str(sd3_folder), **EXPECTED}
        assert set(settings) == set(SUMMARY)
        table = found["experiment"].experiment
        assert {column.name for column in table.hparam_infos if column.differs} == set(FIRST) <= set(SUMMARY)
        assert tuple(metric.name.tag for metric in table.metric_infos) == METRICS
        assert found["session_end_info"].session_end_info.status == 1  # success


def test_a_run_that_fails_is_not_marked_as_finished(sd3_folder: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")

    class Broken(script.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            raise ArithmeticError("broken")

    with pytest.raises(ArithmeticError, match="broken"):
        script.train(tmp_path, sd3_folder, Broken())
    assert set(hparams(tmp_path / "script/version_0")) == {"experiment", "session_start_info"}
