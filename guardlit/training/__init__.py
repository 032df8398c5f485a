"""The LightningModule, the Trainer of a run and its callbacks. Imports data, rounds and checkpoints."""
