"""Prompt sets, the DataModule, and the loader whose epoch is one round. Imports rounds and the rooms below it."""
