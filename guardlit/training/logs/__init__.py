"""TensorBoard's layout, and the table of all logged keys. Imports rounds and training."""
