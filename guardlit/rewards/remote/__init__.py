"""Scorers that run in other processes, over HTTP. Imports rewards/ alone."""
