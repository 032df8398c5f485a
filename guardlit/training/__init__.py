"""The LightningModule and a run's own callbacks. Imports data, rounds and checkpoints."""
