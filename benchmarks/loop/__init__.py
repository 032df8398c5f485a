"""Measures a round against a bare loop over the same model: `python -m benchmarks.loop`."""
