"""The table on the screen, and as Markdown, CSV and JSON files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardlit.config import console
from guardlit.config.console import show
from guardlit.errors import GuardlitError
from guardlit.gold.drawing import Drawn, as_json
from guardlit.gold.settings import AVERAGE, Gold
from guardlit.gold.statistics import LEVEL, Array, Estimate

if TYPE_CHECKING:
    pass

FILES = ("table.md", "table.csv", "table.json", "scores.csv")


@dataclass(frozen=True)
class Table:
    """The result of an evaluation.

    Attributes:
        drawn: models, prompts and images.
        gold: what was measured.
        rows: each model's metrics by name, `average` last, if it could be formed.
        scores: each model's scores by column, (K x P,) each in the order of `drawn.images`.
        files: each model's images, in the same order.
        trained: names of the scorers that the models were trained on.
        no_average: why there is no Average, if there is none.
    """

    drawn: Drawn
    gold: Gold
    rows: list[dict[str, Estimate]]
    scores: list[dict[str, Array]]
    files: list[list[Path]]
    trained: frozenset[str]
    no_average: str = ""

    @property
    def metrics(self) -> list[str]:
        """Names of the columns."""
        return list(self.rows[0])

    def title(self, metric: str) -> str:
        """A column's heading."""
        if metric == AVERAGE:
            return "Average"
        arrow = " ↓" if metric.partition("/")[0] in self.gold.lower_is_better else ""
        return f"{metric}{'*' if self.is_proxy(metric) else ''}{arrow}"

    def is_proxy(self, metric: str) -> bool:
        """Whether the models were trained on it."""
        scorer = self.gold.scorers.get(metric.partition("/")[0])
        return scorer is not None and scorer.name in self.trained

    def notes(self) -> list[str]:
        """Notes below the table."""
        prompts, k = len(self.drawn.prompts), self.drawn.images_per_prompt
        images = len(self.drawn.images)
        average = " and ".join(self.gold.average or [])
        lines = [
            f"Means over {prompts} prompts x {k} images; {images} of {images} images of every model scored by every "
            f"scorer. In brackets the {LEVEL:.0%} interval of {self.gold.resamples} resamples of the prompts.",
            f"Average: mean over {average} of score / base{'; base / score for those marked ↓' * self._inverted}.",
        ]
        if any(map(self.is_proxy, self.metrics)):
            lines.append("*: trained on, no gold score.")
        if any(model.base_steps for model in self.drawn.models):
            lines.append(
                "base steps: the last denoising steps that the base model takes in place of the trained weights."
            )
        if self.no_average:
            lines[1] = f"No Average: {self.no_average}."
        return lines

    @property
    def _inverted(self) -> bool:
        return bool(set(self.gold.lower_is_better) & set(self.gold.average or []))


def write_table(table: Table, provenance: Mapping[str, Any], out: Path) -> list[Path]:
    """Write `table.md`, `table.csv`, `table.json` and `scores.csv`, a row an image.

    Args:
        table: what to write.
        provenance: how it was made, for the JSON file.
        out: the folder.

    Returns:
        The files.

    Raises:
        GuardlitError: a folder that cannot be written.
    """
    paths = [out / name for name in FILES]
    texts = (_markdown(table), _csv(table), as_json(_document(table, provenance)), _scores(table, out))
    try:
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GuardlitError(f"the table cannot be written to {out}: {error.strerror or error}") from error
    return paths


# rows of cells --------------------------------------------------------------------------------------------------------


def _grid(table: Table, cell: Callable[[str, Estimate], str]) -> list[list[str]]:
    """Headings, then a row a model; without columns that are empty."""
    rows = [["model", "weights", "updates", "base steps", *map(table.title, table.metrics)]]
    given = any(model.base_steps for model in table.drawn.models)
    for model, row in zip(table.drawn.models, table.rows, strict=True):
        step = "" if model.step is None else str(model.step)
        base_steps = str(model.base_steps) if given and model.kind != "base" else ""
        rows.append(
            [
                model.label,
                model.weights,
                step,
                base_steps,
                *(cell(metric, estimate) for metric, estimate in row.items()),
            ]
        )
    used = [column for column in range(len(rows[0])) if any(row[column] for row in rows[1:])]
    return [[row[column] for column in used] for row in rows]


def _value(metric: str, estimate: Estimate) -> str:
    return f"{_number(estimate.value)} [{_number(estimate.low)}, {_number(estimate.high)}]"


def _short(metric: str, estimate: Estimate) -> str:
    return _value(metric, estimate) if metric == AVERAGE else _number(estimate.value)


def _difference(metric: str, estimate: Estimate) -> str:
    return f"{_signed(estimate.difference)} [{_signed(estimate.difference_low)}, {_signed(estimate.difference_high)}]"


def _signed(value: float) -> str:
    """Two digits."""
    return f"{value:+.1f}" if abs(value) >= 10 else f"{value:+#.2g}"


def _number(value: float) -> str:
    """Three digits after the point, or as many as a small number needs."""
    return f"{value:.3f}" if abs(value) >= 0.1 or value == 0 else f"{value:.3g}"


def _markdown(table: Table) -> str:
    parts = [*_pipes(_grid(table, _value)), "", *(f"{note}\n" for note in table.notes())]
    if len(table.rows) > 1:
        differences = _grid(table, _difference)
        parts += ["Differences to the base model on the same prompts:\n", *_pipes([differences[0], *differences[2:]])]
    return "\n".join(parts).rstrip() + "\n"


def _pipes(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    return [head, "|" + "---|" * len(rows[0]), *body]


def _csv(table: Table) -> str:
    """A row a model and metric, at full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    named = ["model", "weights", "updates", "base_steps", "metric"]
    writer.writerow([*named, *Estimate.__dataclass_fields__, "scored", "asked"])
    images = len(table.drawn.images)
    for model, row in zip(table.drawn.models, table.rows, strict=True):
        for metric, estimate in row.items():
            values = [model.label, model.weights, model.step, model.base_steps, metric]
            writer.writerow([*values, *asdict(estimate).values(), images, images])
    return file.getvalue()


def _scores(table: Table, out: Path) -> str:
    """A row an image."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["model", "image", "prompt", "file", *table.gold.scorers])
    for model, scores, files in zip(table.drawn.models, table.scores, table.files, strict=True):
        for (index, prompt), path in zip(table.drawn.images, files, strict=True):
            values = [float(scores[column][index]) for column in table.gold.scorers]
            writer.writerow([model.label, index, prompt.text, path.relative_to(out), *values])
    return file.getvalue()


def _document(table: Table, provenance: Mapping[str, Any]) -> dict[str, Any]:
    images = len(table.drawn.images)
    rows = [
        {
            **asdict(model),
            "scored": images,
            "asked": images,
            "metrics": {metric: asdict(estimate) for metric, estimate in row.items()},
        }
        for model, row in zip(table.drawn.models, table.rows, strict=True)
    ]
    settings = {
        "average": table.gold.average,
        "lower_is_better": table.gold.lower_is_better,
        "resamples": table.gold.resamples,
        "level": LEVEL,
        "trained_on": [metric for metric in table.metrics if table.is_proxy(metric)],
        "no_average": table.no_average or None,
    }
    return {"models": rows, "settings": settings, "provenance": dict(provenance)}


# on the screen --------------------------------------------------------------------------------------------------------


def print_table(table: Table) -> None:
    """Print the values, then a row for each difference to the base model."""
    header, *rows = _grid(table, _short)
    show("gold scores", console.table(header, rows))
    if len(table.rows) > 1:
        differences = [
            [model.label, table.title(name), _difference(name, entry)]
            for model, row in zip(table.drawn.models[1:], table.rows[1:], strict=True)
            for name, entry in row.items()
        ]
        header = ["model", "metric", f"difference [{LEVEL:.0%} interval]"]
        show("differences to the base model on the same prompts", console.table(header, differences))
    show(*table.notes())
