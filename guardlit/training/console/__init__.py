"""What a run prints: a table of rounds, a live line, the end; imports what `training` may import."""
