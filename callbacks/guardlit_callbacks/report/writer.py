"""`python -m guardlit_callbacks.report RUN [RUN ...] --out FOLDER`: figures and one page from what runs logged.

Needs neither torch nor Lightning. A RUN is a Lightning log folder of any project. The report reads `metrics.csv`
(Lightning's CSVLogger), `gold.csv`, `gold.json`, `gold/` and `over_optimization.json` (`GoldScore`,
`OverOptimizationStop`), `kl.csv` (`KLFromBase`), `ratio/` and `gradient/` (`RatioDistribution`, `GradientNorm`),
`samples/film_strip.png` (`SampleGrid`), `config.yaml`, and `run.json`, a mapping of provenance. Missing files
are left out, and the page names them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from guardlit_callbacks.frontier import write
from guardlit_callbacks.report.curves import curve_keys, drift_keys
from guardlit_callbacks.report.data import ReportError, Run, read_run
from guardlit_callbacks.report.frontier import Comparison, comparison, frontier_section
from guardlit_callbacks.report.html import image, page, paragraph, section
from guardlit_callbacks.report.labels import ConfigKeys, group
from guardlit_callbacks.report.methods import Method
from guardlit_callbacks.report.sections import (
    drift_section,
    gold_section,
    gradient_section,
    ratio_section,
    samples_section,
    training_section,
)
from guardlit_callbacks.report.tables import contents_table, made_with, settings_parts
from guardlit_callbacks.report.verdict import verdict_section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USAGE_ERROR = 2


def build(
    runs: Sequence[str],
    out: Path,
    labels: Sequence[str] = (),
    title: str = "",
    curves: Sequence[str] = (),
    keys: ConfigKeys = ConfigKeys(),  # noqa: B008 - frozen
    baseline: str = "",
    levels: Sequence[float] = (),
) -> Path:
    """Writes `index.html`, and next to it each figure as PNG and SVG, and the frontier as `frontier.json` and `.csv`.

    Args:
        runs: log folders; two of a resumed run are joined by `+`.
        out: folder to write to; created if missing.
        labels: the method of each run, in order; runs of one label are seeds of one method. By default the name that
            `config.yaml` has under `keys.method`.
        title: of the page.
        curves: patterns of the logged keys to plot, as in `train/*`; by default rewards, clipping, KL, gradients.
        keys: where each `config.yaml` names the method, its seeds and the settings that matter most.
        baseline: label of the method that the frontier compares the others with; by default the first.
        levels: of the proxy at which it compares them; chosen by default.

    Returns:
        The page's path.

    Raises:
        ReportError: a run, a label, a pattern or the output folder cannot be used.
    """
    read = [read_run(run) for run in runs]
    methods = group(read, labels, keys)
    shown = curve_keys(read, curves)
    _check_common(read, shown)
    compared = comparison(methods, baseline, levels)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if compared:
            write(compared.found, out)
        path = out / "index.html"
        sections = _sections(methods, compared, shown, keys, out)
        path.write_text(page(title or _title([m.label for m in methods]), sections), encoding="utf-8")
    except OSError as error:
        raise ReportError(f"--out {out} cannot be written: {error.strerror}") from error
    return path


def _sections(
    methods: Sequence[Method], compared: Comparison | None, curves: dict[str, str], keys: ConfigKeys, out: Path
) -> list[str]:
    """The sections of the page; writes their figures."""

    def embed_figure(figure: Figure, name: str, alt: str, caption: str) -> str:
        return image(_write_figure(figure, out / name), "svg+xml", alt, caption, [f"{name}.png", f"{name}.svg"])

    def embed_image(path: Path, name: str, alt: str, caption: str) -> str:
        data = path.read_bytes()
        (out / f"{name}.png").write_bytes(data)
        return image(data, "png", alt, caption, [f"{name}.png"])

    drift = drift_keys([run for method in methods for run in method.runs])
    return [
        verdict_section(methods, keys, compared),
        frontier_section(compared, embed_figure),
        gold_section(methods, embed_figure),
        ratio_section(methods, embed_figure),
        gradient_section(methods, embed_figure),
        drift_section(methods, drift, embed_figure),
        training_section(methods, curves, embed_figure),
        samples_section(methods, embed_image),
        section("What was read", contents_table(methods)),
        section("Settings and provenance", *settings_parts(methods), paragraph(made_with(), "note")),
    ]


def _title(labels: Sequence[str]) -> str:
    """What the page is about: the proxy reward against gold scores, of one method or of several."""
    return f"Training report: {' against '.join(labels) if len(labels) == 2 else ', '.join(labels)}"


def _write_figure(figure: Figure, path: Path) -> bytes:
    """Writes PNG and SVG reproducibly; returns the SVG."""
    from matplotlib import rc_context

    figure.savefig(path.with_suffix(".png"), dpi=160, metadata={"Software": None})
    buffer = BytesIO()
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    path.with_suffix(".svg").write_bytes(buffer.getvalue())
    return buffer.getvalue()


def _check_common(runs: Sequence[Run], keys: dict[str, str]) -> None:
    """Refuses several runs that have nothing to compare."""
    kinds = [
        {kind for kind in ("gold", "ratio", "gradient") if _has(run, kind)} | (run.scalars.keys() & keys.keys())
        for run in runs
    ]
    if len(runs) > 1 and not set.intersection(*kinds):
        found = "; ".join(
            f"{run.name} has {', '.join(sorted(k)) or 'nothing that a report shows'}"
            for run, k in zip(runs, kinds, strict=True)
        )
        raise ReportError(f"the runs have nothing in common to compare: {found}")


def _has(run: Run, kind: str) -> bool:
    return bool(run.gold) if kind == "gold" else bool(getattr(run, kind).found)


# --- command line -----------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ReportError(message)


def execute(arguments: Sequence[str], program: str, keys: ConfigKeys = ConfigKeys()) -> None:  # noqa: B008 - frozen
    """Runs a command line.

    Args:
        arguments: those after the program's name.
        program: its name in the help.
        keys: defaults of `--method-key`, `--setting-keys` and `--seed-keys`.

    Raises:
        ReportError: an error the user can fix.
    """
    parser = _Parser(program, description="Figures and one HTML page from what runs logged.", allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="log folder; a run resumed in another folder is FIRST+SECOND")
    add("--out", type=Path, required=True, metavar="FOLDER", help="folder for index.html and the figures")
    add("--title", default="", help="title of the page (default: the methods)")
    add("--label", action="append", default=[], metavar="NAME", help="method of a RUN, once each, in order; runs of "
        "one label are its seeds (default: the value of --method-key)")  # fmt: skip
    add("--curves", action="extend", nargs="+", default=[], metavar="KEY", help="logged keys to plot over training, "
        "as in 'train/*' (default: rewards, clipping, KL, gradients, loss)")  # fmt: skip
    add("--method-key", default=keys.method, metavar="KEY", help="where config.yaml names the method, dotted "
        "(default: %(default)s)")  # fmt: skip
    add("--setting-keys", nargs="+", default=keys.settings, metavar="KEY", help="sections of config.yaml in which "
        f"methods of one name may differ (default: {' '.join(keys.settings)})")  # fmt: skip
    add("--seed-keys", nargs="+", default=keys.seeds, metavar="KEY", help="where config.yaml holds seeds "
        f"(default: {' '.join(keys.seeds)})")  # fmt: skip
    add("--baseline", default="", metavar="NAME", help="method that the frontier compares the others with (default: "
        "the first)")  # fmt: skip
    add("--levels", nargs="+", type=float, default=[], metavar="PROXY", help="proxy rewards at which the frontier "
        "compares the methods (default: five that all runs cross)")  # fmt: skip
    options = parser.parse_args(list(arguments))
    given = {"method": options.method_key, "settings": options.setting_keys, "seeds": options.seed_keys}
    keys = replace(keys, **given)
    print(build(options.runs, options.out, options.label, options.title, options.curves, keys,
                options.baseline, options.levels))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m guardlit_callbacks.report`: returns 0, or 2 after an error of the user, reported in one line."""
    program = "python -m guardlit_callbacks.report"
    try:
        execute(sys.argv[1:] if arguments is None else arguments, program)
    except ReportError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0
