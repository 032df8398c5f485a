"""What checkpoints hold, and whether they are intact. Imports processes."""
