"""Base classes of callbacks: one that reports per round, one per validation. Imports `distributed` and `tools`."""
