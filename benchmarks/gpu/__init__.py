"""Measures guardlit on one GPU in eight minutes: `python -m benchmarks.gpu`; README.md explains it."""
