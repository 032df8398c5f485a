"""`metrics.csv` has every logged value, one row a step, and pandas reads it."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from guardlit.training.logs.metrics_file import MetricsFile


@pytest.fixture
def logger(tmp_path: Path) -> MetricsFile:
    """Writes `tmp_path/run/metrics.csv`."""
    return MetricsFile(tmp_path, name="", version="run")


def rows(folder: Path) -> list[dict[str, float]]:
    """The values of each row."""
    with (folder / "run/metrics.csv").open(newline="") as file:
        return [{key: float(cell) for key, cell in row.items() if cell} for row in csv.DictReader(file)]


def test_what_is_logged_at_one_step_is_one_row(logger: MetricsFile, tmp_path: Path):
    logger.log_metrics({"a": 1.0}, step=0)
    logger.log_metrics({"b": 2.0}, step=0)
    logger.save()
    assert rows(tmp_path) == [{"step": 0, "a": 1, "b": 2}]
    logger.log_metrics({"c": 3.0}, step=0)  # a new column, in a row that is in the file already
    logger.log_metrics({"a": 4.0}, step=1)
    logger.save()
    logger.log_metrics({"b": 5.0}, step=1)
    logger.save()
    assert rows(tmp_path) == [{"step": 0, "a": 1, "b": 2, "c": 3}, {"step": 1, "a": 4, "b": 5}]


def test_a_later_column_leaves_earlier_rows_as_they_are(logger: MetricsFile, tmp_path: Path):
    expected = []
    for step in range(40):
        row = {f"key/{step // 4}": step / 7, "always": math.pi * step}
        for key, value in row.items():
            logger.log_metrics({key: value}, step=step)
            if step % 3:
                logger.save()
        expected.append({"step": step, **row})
    logger.finalize("success")
    assert rows(tmp_path) == expected


def test_only_the_last_row_is_written_again(logger: MetricsFile, tmp_path: Path):
    path = tmp_path / "run/metrics.csv"
    for step in range(3):
        logger.log_metrics({"a": float(step)}, step=step)
    logger.save()
    path.write_bytes(path.read_bytes().replace(b"0.0,0", b"9.5,0"))  # of the same length
    logger.log_metrics({"a": 7.0}, step=2)
    logger.log_metrics({"a": 8.0}, step=3)
    logger.save()
    assert [row["a"] for row in rows(tmp_path)] == [9.5, 1, 7, 8]


def test_a_run_that_goes_back_keeps_the_rows_before(logger: MetricsFile, tmp_path: Path):
    for step in (1, 2, 3, 2, 3):
        logger.log_metrics({"a": float(step)}, step=step)
        logger.save()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 2, 3]


def test_pandas_reads_it_as_the_page_says(logger: MetricsFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The example in docs/loggers.md, on a run of three rounds."""
    pytest.importorskip("pandas", reason="pandas is not installed")
    for step in range(13):
        logger.log_metrics({"train/loss": step / 10}, step=step)
        if step % 4 == 0:
            logger.log_metrics({"val/reward": 0.5 + step / 100, "gold/average": 1 + step / 100}, step=step)
    logger.save()
    page = (Path(__file__).parents[3] / "docs/loggers.md").read_text(encoding="utf-8")
    (example,) = [text.partition("```")[0] for text in page.split("```python\n")[1:] if "read_csv" in text]
    (tmp_path / "runs/tiny_digits").mkdir(parents=True)
    (tmp_path / "run").rename(tmp_path / "runs/tiny_digits/version_0")
    monkeypatch.chdir(tmp_path)
    found: dict[str, object] = {}
    exec(example, found)
    assert found["run"].index.tolist() == list(range(13))
    assert found["gold"].index.tolist() == [0, 4, 8, 12]
    assert found["best"] == 12
