"""The picture of an analysis with all objectives."""

from __future__ import annotations

import torch

from guardlit.ablation.analysis import MEASURES, Analysis
from guardlit.ablation.output import analysis_figure
from guardlit.objective import OBJECTIVES


def test_every_objective_has_a_visible_curve_of_its_own():
    objectives = {preset.__name__: preset() for preset in OBJECTIVES}
    count, steps = len(objectives), 9
    values = torch.linspace(1e-3, 0.9, count * steps, dtype=torch.float64).reshape(count, steps)
    measures = dict.fromkeys(MEASURES, values)
    cosines = torch.eye(count, dtype=torch.float64)
    found = Analysis(
        objectives,
        list(range(steps)),
        values[0],
        measures,
        cosines.expand(steps, -1, -1),
        cosines,
        values[:, 0],
        [4] * steps,
    )
    figure = analysis_figure(found)
    panels = [axes for axes in figure.axes if axes.get_legend()]
    assert len(panels) == 3
    for axes in panels:
        labels = [text.get_text().split(",")[0] for text in axes.get_legend().get_texts()]
        assert labels == list(objectives)
        curves = [line for line in axes.lines if not line.get_label().startswith("_")]
        assert all(4 <= line.get_markersize() <= 9 for line in curves)
        assert len({(line.get_color(), line.get_marker()) for line in curves}) == count
        assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1 - 1
