"""Devices: dtypes, bytes of tensors, cost of code, timing, float32 precision, copies. Imports errors and types."""
