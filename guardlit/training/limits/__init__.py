"""What a run does with each part of Lightning and torch, and what it refuses. Imports policies and rounds."""
