"""What checkpoints hold, and how they are written, verified and found. Imports errors, types, files and processes."""
