"""Prompt sets, and the loader whose epoch is one round. Imports rounds."""
