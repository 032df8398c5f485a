"""Builds and measures the bundled digits world. Imports assets, rewards, the math; no room imports it."""
