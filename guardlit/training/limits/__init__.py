"""What a run makes of each part of Lightning and torch, or refuses. Imports policies, rounds and processes."""
