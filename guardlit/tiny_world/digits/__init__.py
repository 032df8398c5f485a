"""Builds and measures the digits world, from scikit-learn's handwritten digits. Imports what tiny_world imports."""
