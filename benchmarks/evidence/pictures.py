"""Images of the pair from the same prompts and noise: at an equal proxy (Fig. 1, right) and over training (Fig. 9)."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from guardlit_callbacks.figures.pictures import Frame, film_strip
from guardlit_callbacks.tools.logging import save_png

from benchmarks.evidence.configuration import EVALUATED
from benchmarks.evidence.curves import logged
from benchmarks.evidence.study import Study
from benchmarks.evidence.trials import Trial
from benchmarks.evidence.worlds import PAIR, World
from guardlit.errors import GuardlitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS, STRIP_COLUMNS, STRIP_ROWS, SIZE = 6, 3, 6, 128
"""Prompts of the comparison, and of each method in the film strip: the first of the validation set, one image each."""
EQUAL = 0.01
"""Two proxies that differ by no more count as equal."""
BASE = "base"
"""Row of the untrained model in an evaluation."""


@dataclass(frozen=True)
class Moment:
    """An evaluation of a run, with its checkpoint.

    Attributes:
        method: of the run.
        step: updates so far.
        proxy: mean over the validation images.
        gold: gold Average, 1 at the base.
        checkpoint: None for the base.
    """

    method: str
    step: int
    proxy: float
    gold: float
    checkpoint: Path | None

    @property
    def label(self) -> str:
        """In the evaluation's table."""
        return f"{self.method} {self.step}" if self.checkpoint else BASE


@dataclass(frozen=True)
class Image:
    """A drawn image: its prompt, its pixels (H, W, 3), and its proxy."""

    prompt: str
    pixels: NDArray[np.uint8]
    proxy: float


def draw(study: Study, folder: Path) -> list[Path]:
    """Draw the pair's images and return the files; none while a run or its checkpoints are missing."""
    world = study.world
    at_reference = (trial for own in study.at(world.reference).values() for trial in own)
    trials = {t.method: t for t in at_reference if t.method in PAIR and t.seed == world.seeds[0]}
    found = [moments(trials[method]) for method in PAIR if method in trials]
    if len(found) < len(PAIR) or any(own[-1].checkpoint is None for own in found):
        return []
    equal, strips = equal_proxy(*found), [spread(own, STRIP_ROWS) for own in shared(found)]
    images = drawn(world, {m.label: m for own in (equal, *strips) for m in own}.values(), study.folder / "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    made = {"pair": comparison([found[0][0], *equal], images), "film_strip": over_training(strips, images)}
    paths = {folder / f"evidence_{world.name}_{name}.png": picture for name, picture in made.items()}
    for path, picture in paths.items():
        save_png(path, picture)
    return list(paths)


def moments(trial: Trial) -> list[Moment]:
    """The evaluations of a run whose weights are there: that of the base, and those with a checkpoint."""
    gold = logged(trial).gold
    files = {path.name: path for part in trial.run.parts() for path in part.glob("checkpoints/*.ckpt")}
    rows = zip(gold["step"].astype(int).tolist(), gold["proxy"].tolist(), gold["average"].tolist(), strict=True)
    found = [Moment(trial.method, *row, files.get(f"{EVALUATED}.ckpt".format(step=row[0]))) for row in rows]
    return [moment for moment in found if moment.step == 0 or moment.checkpoint]


def equal_proxy(first: Sequence[Moment], second: Sequence[Moment]) -> tuple[Moment, Moment]:
    """The two trained moments of equal proxy that are furthest; where none are equal, those that differ least."""
    pairs = list(product(first[1:], second[1:]))
    equal = [(a, b) for a, b in pairs if abs(a.proxy - b.proxy) <= EQUAL]
    if not equal:
        return min(pairs, key=lambda pair: abs(pair[0].proxy - pair[1].proxy))
    return max(equal, key=lambda pair: min(pair[0].proxy, pair[1].proxy))


def shared(found: Sequence[Sequence[Moment]]) -> list[list[Moment]]:
    """Of runs of unequal length, the moments at equal numbers of updates."""
    steps = set.intersection(*({moment.step for moment in own} for own in found))
    return [[moment for moment in own if moment.step in steps] for own in found]


def spread(found: Sequence[Moment], count: int) -> list[Moment]:
    """At most `count` moments at even distances, with the first and the last."""
    return [found[i] for i in np.unique(np.linspace(0, len(found) - 1, count).round().astype(int))]


def drawn(world: World, chosen: Iterable[Moment], folder: Path) -> dict[str, list[Image]]:
    """The validation images of the base and of each moment by their labels; raises `GuardlitError` if it fails."""
    checkpoints = [moment for moment in chosen if moment.checkpoint]
    command = [sys.executable, "-m", "guardlit", "evaluate", "--config", world.config, "--config", world.gold]
    command += ["--ckpt", *(m.checkpoint for m in checkpoints), "--label", *(m.label for m in checkpoints)]
    ended = subprocess.run([*map(str, command), "--out", str(folder)], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise GuardlitError(f"images for {folder} cannot be drawn: {ended.stderr.strip()}")
    images: dict[str, list[Image]] = {}
    with (folder / "scores.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            proxy = float(list(row.values())[4])  # the first scorer
            images.setdefault(row["model"], []).append(Image(row["prompt"], _pixels(folder / row["file"]), proxy))
    return images


def comparison(rows: Sequence[Moment], images: Mapping[str, Sequence[Image]]) -> NDArray[np.uint8]:
    """A row for each moment, with its mean scores."""
    labels = [
        "\n".join([*m.label.split(" ")[:1], f"{m.step} updates", f"proxy {m.proxy:.2f}", f"gold {m.gold:.2f}"])
        for m in rows
    ]
    frames = [_frame(label, images[m.label][:COLUMNS]) for label, m in zip(labels, rows, strict=True)]
    return film_strip(frames, [image.prompt for image in images[BASE][:COLUMNS]], SIZE)


def over_training(strips: Sequence[Sequence[Moment]], images: Mapping[str, Sequence[Image]]) -> NDArray[np.uint8]:
    """A row for each number of updates, the methods side by side."""
    frames = [
        _frame(f"{row[0].step}\nupdates", [image for m in row for image in images[m.label][:STRIP_COLUMNS]])
        for row in zip(*strips, strict=True)
    ]
    captions = [f"{own[0].method}: {image.prompt}" for own in strips for image in images[BASE][:STRIP_COLUMNS]]
    return film_strip(frames, captions, SIZE)


def _frame(label: str, images: Sequence[Image]) -> Frame:
    return Frame(label, [image.pixels for image in images], [f"proxy {image.proxy:.2f}" for image in images])


def _pixels(path: Path) -> NDArray[np.uint8]:
    from PIL import Image as File

    with File.open(path) as image:
        return np.array(image.convert("RGB"))
