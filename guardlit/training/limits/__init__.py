"""What a run can do with each part of Lightning and torch, and why it refuses the others. Imports errors only."""
