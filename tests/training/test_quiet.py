"""Libraries print nothing that a user has no use for."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only
from runs import EVERY_UPDATE, config, guardlit, newest

from guardlit.training import quiet
from guardlit.training.quiet import NOISE, quiet_libraries

OURS = ("images per round", "noise floor", "Seed set to 42", "`Trainer.fit` stopped", "Restored all", "Loaded model")


def test_a_run_and_its_images_are_quiet(
    sd3_folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
):
    """`sample` has no checkpoints to write: its configuration lacks the run's ModelCheckpoint."""
    path = config(tmp_path, sd3_folder, trainer__callbacks=[EVERY_UPDATE], trainer__max_epochs=1)
    (tmp_path / "plain").mkdir()
    plain = config(tmp_path / "plain", sd3_folder, trainer__callbacks=[])
    with caplog.at_level(logging.INFO):
        assert guardlit("fit", "--config", path) == 0
        saved = newest(tmp_path / "runs")
        recwarn.clear()
        assert guardlit("sample", "--config", plain, "--ckpt_path", saved, "--n", 1, "--out", tmp_path / "images") == 0
    assert [r.getMessage() for r in caplog.records if not r.getMessage().startswith(OURS)] == []
    assert [str(w.message) for w in recwarn if "eprecat" not in str(w.message)] == []


@pytest.mark.parametrize("name", sorted(NOISE))
def test_the_loggers_drop_only_what_is_listed(name: str, caplog: pytest.LogCaptureFixture):
    quiet_libraries()
    log = logging.getLogger(name)
    with caplog.at_level(logging.INFO):
        for text in NOISE[name]:
            log.info("%s: more", text)
        log.info("what a user wants to know")
    assert [record.getMessage() for record in caplog.records] == ["what a user wants to know"]


def test_lightning_still_says_what_is_dropped():
    """A filter for a message that no longer exists would be dead."""
    import lightning

    sources = "".join(path.read_text(encoding="utf-8") for path in Path(lightning.__file__).parent.rglob("*.py"))
    missing = {text for texts in NOISE.values() for text in texts if text.split(": ")[0].strip("[") not in sources}
    assert missing == set()


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("callbacks used to create the checkpoint need to be provided: [\"ModelCheckpoint{'monitor': None}\"].", False),
        (
            "callbacks used to create the checkpoint need to be provided: ['Timer', \"RoundCheckpoint{'top': 1}\"].",
            False,
        ),
        ("callbacks used to create the checkpoint need to be provided: ['ModelCheckpoint{}', 'TrainableEMA'].", True),
        ("callbacks used to create the checkpoint need to be provided: ['Timer', 'TrainableEMA'].", True),
        ("callbacks used to create the checkpoint need to be provided: ['TrainableEMA'].", True),
    ],
)
def test_a_missing_average_is_still_told(message: str, shown: bool, recwarn: pytest.WarningsRecorder):
    quiet_libraries()
    warnings.warn(message, stacklevel=1)
    assert [str(w.message) for w in recwarn] == ([message] if shown else [])


def test_our_warnings_are_one_line(monkeypatch: pytest.MonkeyPatch):
    shown = quiet._format("too coarse", UserWarning, "/site-packages/guardlit/training/linter.py", 276)
    assert shown == "warning: too coarse\n"
    assert "library.py:3: DeprecationWarning: old" in quiet._format("old", DeprecationWarning, "/a/library.py", 3)


@pytest.mark.parametrize(("rank", "terminal", "shown"), [(0, True, 1), (1, True, 0), (1, False, 1)])
def test_other_ranks_warn_only_into_files(
    rank: int, terminal: bool, shown: int, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
):
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    quiet_libraries()
    warnings.warn("a library's warning", stacklevel=1)
    assert len(recwarn) == shown
