"""Devices: dtypes, bytes of tensors, cost of code, timing, float32, copies, cores. Imports errors and types."""
