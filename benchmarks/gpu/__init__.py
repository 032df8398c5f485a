"""What one GPU says of guardlit in eight minutes: `python -m benchmarks.gpu`; see README.md beside this file."""
