"""One update: its loss, micro-batch, loss scale, clip calibration and optimizer. Imports rounds and policies."""
