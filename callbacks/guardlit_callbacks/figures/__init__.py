"""Figures and image grids of the callbacks and the report. Imports `frontier` and `tools`."""

from guardlit_callbacks.figures.drawing import LINES as LINES
from guardlit_callbacks.figures.drawing import MARKERS as MARKERS
from guardlit_callbacks.figures.drawing import PALETTE as PALETTE
from guardlit_callbacks.figures.frontier import frontier_figure as frontier_figure
from guardlit_callbacks.figures.frontier import run_frontier_figure as run_frontier_figure
from guardlit_callbacks.figures.plots import Band as Band
from guardlit_callbacks.figures.plots import RatioSamples as RatioSamples
from guardlit_callbacks.figures.plots import gradient_figure as gradient_figure
from guardlit_callbacks.figures.plots import ratio_figure as ratio_figure
from guardlit_callbacks.figures.plots import training_figure as training_figure
from guardlit_callbacks.figures.proxy_gold import ProxyGoldCurve as ProxyGoldCurve
from guardlit_callbacks.figures.proxy_gold import proxy_gold_figure as proxy_gold_figure
from guardlit_callbacks.figures.proxy_gold import turning_point as turning_point
