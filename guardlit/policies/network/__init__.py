"""How a network computes: attention kernels, compiled blocks, precision. Imports errors."""
