"""The evidence's pictures: which checkpoints are equal in proxy, and what stands where."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as File

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from evidence_runs import STEPS, FakeTrainer  # noqa: E402

from benchmarks.evidence import pictures  # noqa: E402
from benchmarks.evidence.pictures import Image, Moment, equal_proxy, moments, shared, spread  # noqa: E402
from benchmarks.evidence.study import Study, shortened  # noqa: E402
from benchmarks.evidence.worlds import DIGITS, PAIR, World  # noqa: E402


def path_of(proxies: Iterable[float]) -> list[Moment]:
    return [Moment("FlowGRPO", 10 * i, proxy, 1.0, Path("x")) for i, proxy in enumerate(proxies)]


def test_the_furthest_equal_proxies_are_chosen():
    first, second = path_of([0.5, 0.6, 0.7, 0.8]), path_of([0.5, 0.605, 0.695, 0.9])
    assert [m.step for m in equal_proxy(first, second)] == [20, 20]


def test_the_base_is_no_equal_proxy():
    assert [m.step for m in equal_proxy(path_of([0.9, 0.6]), path_of([0.9, 0.6]))] == [10, 10]


def test_without_equal_proxies_the_nearest_are_chosen():
    assert [m.step for m in equal_proxy(path_of([0.5, 0.6, 0.7]), path_of([0.5, 0.62, 0.8]))] == [10, 10]


@pytest.mark.parametrize(("length", "steps"), [(3, [0, 10, 20]), (11, [0, 20, 40, 60, 80, 100])])
def test_a_strip_has_the_first_and_the_last(length: int, steps: list[int]):
    assert [m.step for m in spread(path_of([0.5] * length), 6)] == steps


def test_a_longer_run_is_shown_as_far_as_the_other():
    assert [[m.step for m in own] for own in shared([path_of([0.5] * 5), path_of([0.5] * 3)])] == [[0, 10, 20]] * 2


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return shortened(DIGITS, tmp_path / "digits", FakeTrainer())


def with_checkpoints(study: Study) -> None:
    for trial in study.of("settings"):
        for step in STEPS[1:]:
            path = trial.run.folder / f"version_0/checkpoints/evaluated_{step}.ckpt"
            path.parent.mkdir(exist_ok=True)
            path.touch()


def test_nothing_is_drawn_without_checkpoints(study: Study, tmp_path: Path):
    assert pictures.draw(study, tmp_path) == []


def test_moments_are_the_evaluations_with_weights(study: Study):
    trial = study.of("settings")[0]
    assert [m.step for m in moments(trial)] == [0]
    with_checkpoints(study)
    found = moments(trial)
    assert [m.step for m in found] == list(STEPS)
    assert [m.label for m in found] == ["base", *(f"{trial.method} {step}" for step in STEPS[1:])]
    assert [m.proxy for m in found[:3]] == [0.6, 0.8, 0.9]


def test_each_method_has_its_rows_and_columns(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with_checkpoints(study)
    shade = {method: 60 + 60 * number for number, method in enumerate(PAIR)}

    def drawn(world: World, chosen: Iterable[Moment], folder: Path) -> dict[str, list[Image]]:
        labels = {moment.label for moment in chosen} | {"base"}
        values = {label: shade.get(label.split(" ")[0], 10) for label in labels}
        flat = {label: np.full((32, 32, 3), (value, 255, 0), np.uint8) for label, value in values.items()}
        return {label: [Image("a digit", pixels, 0.5)] * 10 for label, pixels in flat.items()}

    monkeypatch.setattr(pictures, "drawn", drawn)
    paths = pictures.draw(study, tmp_path)
    assert [path.name for path in paths] == ["evidence_digits_pair.png", "evidence_digits_film_strip.png"]
    pair, strip = (np.asarray(File.open(path)) for path in paths)
    tile = pictures.SIZE**2
    shown = [int((pair == (value, 255, 0)).all(-1).sum()) for value in (10, *shade.values())]
    assert shown == [pictures.COLUMNS * tile] * 3
    places = [(strip == (value, 255, 0)).all(-1) for value in shade.values()]
    assert [int(place.sum()) for place in places] == [3 * pictures.STRIP_COLUMNS * tile] * 2
    left, right = (np.flatnonzero(place.any(axis=0)) for place in places)
    assert left.max() < right.min()
