"""Builds and measures the words world: signs with text, color and background. Imports what tiny_world imports."""

from guardlit.tiny_world.words.build import SCALES as SCALES
from guardlit.tiny_world.words.build import build as build
