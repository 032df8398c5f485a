"""The figures of docs/evidence.md: the frontier, and the training curves of the ablation (Fig. 7)."""

from __future__ import annotations

from pathlib import Path

from guardlit_callbacks.figures import Band, training_figure
from guardlit_callbacks.frontier import MethodPaths, curve, read_path
from guardlit_callbacks.report.methods import Method

from benchmarks.evidence.curves import logged
from benchmarks.evidence.study import Study
from benchmarks.evidence.trials import Trial

PANELS = {
    "proxy reward": ("proxy", "its own unit"),
    "gold Average": ("average", "1 = base"),
}
RESOLUTION = 150


def draw(study: Study, folder: Path) -> list[Path]:
    """Draw what the final runs show, and return the files; none without final runs."""
    from guardlit_callbacks.figures.frontier import frontier_figure

    methods: dict[str, list[Trial]] = {}
    for trial in study.of("final"):
        methods.setdefault(trial.method, []).append(trial)
    if not methods:
        return []
    curves = {
        name: found
        for name, own in methods.items()
        if (found := curve(MethodPaths(name, tuple(read_path(t.run.parts(), f"seed {t.seed}") for t in own))))
    }
    figures = {"frontier": frontier_figure(curves), "training": training_figure(_panels(methods))}
    paths = [folder / f"evidence_{study.world.name}_{name}.png" for name in figures]
    folder.mkdir(parents=True, exist_ok=True)
    for path, figure in zip(paths, figures.values(), strict=True):
        figure.savefig(path, dpi=RESOLUTION)
    return paths


def _panels(methods: dict[str, list[Trial]]) -> dict[str, tuple[str, dict[str, Band]]]:
    found = {name: Method(name, tuple(map(logged, own)), ()) for name, own in methods.items()}
    panels = {
        title: (unit, {name: band for name, method in found.items() if (band := method.gold(column))})
        for title, (column, unit) in PANELS.items()
    }
    distances = {name: band for name, method in found.items() if (band := method.scalar("kl/sqrt_from_base"))}
    return panels | ({"distance from the base": ("sqrt(KL), sqrt(nats)", distances)} if distances else {})
