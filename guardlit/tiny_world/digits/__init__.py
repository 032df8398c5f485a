"""Builds and measures the digits world, from scikit-learn's handwritten digits. Imports what tiny_world imports."""

from guardlit.tiny_world.digits.build import SCALES as SCALES
from guardlit.tiny_world.digits.build import build as build
