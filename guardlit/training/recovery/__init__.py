"""Responses to signals, failures and divergence: save and stop, skip, roll back. Imports checkpoints and processes."""
