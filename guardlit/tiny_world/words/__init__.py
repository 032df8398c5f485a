"""Builds and measures the words world: signs with text, color and background. Imports what tiny_world imports."""
