"""`metrics.csv` of a run: every logged number, one row a step."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class MetricsFile(CSVLogger):
    """Lightning's CSVLogger, whose file has one row a step, however many parts of the run log at that step."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, on rank 0."""
        if self._experiment is None:
            self._experiment = OneRowAStep(self.log_dir)
        return self._experiment


class OneRowAStep(ExperimentWriter):
    """Writes rows as Lightning's, but what is logged at the step of the last row goes into that row.

    A saved last row is written again once it has more in it. A new column rewrites the file.

    Args:
        log_dir: of the file.
    """

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self._path = Path(self.metrics_file_path)
        self._saved = 0
        """Length of the file without its last row, bytes."""
        self._last: dict[str, Any] = {}
        """The file's last row."""

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Keep a row, or add to the last one."""
        super().log_metrics(metrics_dict, step)
        row = self.metrics.pop()
        if not self.metrics and self._last.get("step") == row["step"]:
            self.metrics.append(self._last)
        if self.metrics and self.metrics[-1]["step"] == row["step"]:
            self.metrics[-1] |= row
        else:
            self.metrics.append(row)

    def save(self) -> None:
        """Write what was logged since; the rows before are left alone."""
        if not self.metrics:
            return
        rows, begin = self.metrics, "r+" if self._path.exists() else "w+"
        names = {*self.metrics_keys}.union(*rows)
        with self._path.open(begin, newline="", encoding="utf-8") as file:
            if rows[0] is self._last:
                file.seek(self._saved)
                file.truncate()
            if names - {*self.metrics_keys}:
                self._write_header(file, sorted(names))
            file.seek(0, 2)
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writerows(rows[:-1])
            file.flush()
            self._saved = file.tell()
            writer.writerow(rows[-1])
        self._last, self.metrics = rows[-1], []

    def _write_header(self, file: Any, names: list[str]) -> None:
        file.seek(0)
        rows = list(csv.DictReader(file))
        self.metrics_keys[:] = names
        file.seek(0)
        file.truncate()
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
