"""`python -m guardlit_callbacks.report RUN [RUN ...] --out FOLDER`: figures and one page from what runs logged.

Needs neither torch nor Lightning. A RUN is a Lightning log folder of any project; it is read for `metrics.csv`
(Lightning's CSVLogger), `gold.csv` and `over_optimization.json` (`GoldScore`, `OverOptimizationStop`), `ratio/` and
`gradient/` (`RatioDistribution`, `GradientNorm`), `samples/film_strip.png` (`SampleGrid`), `config.yaml` and
`run.json`. What is not there is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from guardlit_callbacks.report.data import ReportError, Run, read_run
from guardlit_callbacks.report.html import page, paragraph, picture, section
from guardlit_callbacks.report.methods import group
from guardlit_callbacks.report.sections import (
    curve_keys,
    gold_section,
    gradient_section,
    ratio_section,
    samples_section,
    training_section,
)
from guardlit_callbacks.report.tables import contents_table, made_with, settings_parts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["ReportError", "build", "execute", "main"]

USAGE_ERROR = 2


def build(
    runs: Sequence[str], out: Path, labels: Sequence[str] = (), title: str = "", curves: Sequence[str] = ()
) -> Path:
    """Writes `index.html`, and each figure as PNG and SVG beside it.

    Args:
        runs: log folders; a run that was resumed in another folder is both, joined by `+`.
        out: folder to write to, made if need be.
        labels: the method of each run, in order; runs of one label are seeds of one method. By default the objective
            that `config.yaml` names.
        title: of the page.
        curves: patterns of the logged keys in Fig. 7, as in `train/*`; by default rewards, clipping, KL, gradients.

    Returns:
        The page's path.

    Raises:
        ReportError: a run, a label, a pattern or the output folder cannot be used.
    """
    read = [read_run(run) for run in runs]
    methods = group(read, labels)
    keys = curve_keys(read, curves)
    _check_common(read, keys)

    def draw(figure: Figure, name: str, alt: str, caption: str) -> str:
        return picture(_write_figure(figure, out / name), "svg+xml", alt, f"{caption} Files: {name}.png, {name}.svg.")

    def show(path: Path, name: str, alt: str, caption: str) -> str:
        data = path.read_bytes()
        (out / f"{name}.png").write_bytes(data)
        return picture(data, "png", alt, f"{caption} File: {name}.png.")

    try:
        out.mkdir(parents=True, exist_ok=True)
        sections = [
            section("Runs", contents_table(methods)),
            gold_section(methods, draw),
            ratio_section(methods, draw),
            gradient_section(methods, draw),
            training_section(methods, keys, draw),
            samples_section(methods, show),
            section("Settings and provenance", *settings_parts(methods), paragraph(made_with(), "note")),
        ]
        path = out / "index.html"
        path.write_text(page(title or _title([m.label for m in methods]), sections), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"--out {out} cannot be written: {error.strerror}") from error
    return path


def _title(labels: Sequence[str]) -> str:
    return " against ".join(labels) if len(labels) == 2 else ", ".join(labels)


def _write_figure(figure: Figure, path: Path) -> bytes:
    """Writes PNG and SVG, the same bytes for the same figure; returns the SVG."""
    from matplotlib import rc_context

    figure.savefig(path.with_suffix(".png"), dpi=160, metadata={"Software": None})
    buffer = BytesIO()
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    path.with_suffix(".svg").write_bytes(buffer.getvalue())
    return buffer.getvalue()


def _check_common(runs: Sequence[Run], keys: dict[str, str]) -> None:
    """Several runs are reported together because something can be compared."""
    kinds = [
        {kind for kind in ("gold", "ratio", "gradient") if _has(run, kind)} | (run.scalars.keys() & keys.keys())
        for run in runs
    ]
    if len(runs) > 1 and not set.intersection(*kinds):
        told = "; ".join(
            f"{run.name} has {', '.join(sorted(k)) or 'none of what a report shows'}"
            for run, k in zip(runs, kinds, strict=True)
        )
        raise ReportError(f"the runs have nothing in common to compare: {told}")


def _has(run: Run, kind: str) -> bool:
    return bool(run.gold) if kind == "gold" else bool(getattr(run, kind).found)


# --- command line -----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ReportError(message)


def execute(arguments: Sequence[str], program: str) -> None:
    """Runs a command line.

    Args:
        arguments: those after the program's name.
        program: its name in the help.

    Raises:
        ReportError: a mistake of the user.
    """
    parser = _Parser(program, description="Figures and one HTML page from what runs logged.", allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="log folder; a run resumed in another folder is FIRST+SECOND")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where index.html and the figures are written")
    add("--title", default="", help="of the page (default: the methods)")
    add("--label", action="append", default=[], metavar="NAME", help="method of a RUN, once each, in order; runs of "
        "one label are its seeds (default: the objective in config.yaml)")  # fmt: skip
    add("--curves", action="extend", nargs="+", default=[], metavar="KEY", help="logged keys to draw over training, "
        "as in 'train/*' (default: rewards, clipping, KL, gradients, loss)")  # fmt: skip
    options = parser.parse_args(list(arguments))
    print(build(options.runs, options.out, options.label, options.title, options.curves))


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m guardlit_callbacks.report`: returns 0, or 2 for a mistake of the user, said in one line."""
    program = "python -m guardlit_callbacks.report"
    try:
        execute(sys.argv[1:] if arguments is None else arguments, program)
    except ReportError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0
