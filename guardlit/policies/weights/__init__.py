"""Weights of one network: adapters, full copies, merging, quantization, exports. Imports devices, base.py, folders."""
