"""Figures and pictures that callbacks and the report draw. Imports nothing of this package."""

from guardlit_callbacks.figures.plots import ProxyGoldCurve as ProxyGoldCurve
from guardlit_callbacks.figures.plots import RatioSamples as RatioSamples
from guardlit_callbacks.figures.plots import gradient_figure as gradient_figure
from guardlit_callbacks.figures.plots import proxy_gold_figure as proxy_gold_figure
from guardlit_callbacks.figures.plots import ratio_figure as ratio_figure
from guardlit_callbacks.figures.plots import training_figure as training_figure
from guardlit_callbacks.figures.plots import turning_point as turning_point
