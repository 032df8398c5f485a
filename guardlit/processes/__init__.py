"""What ranks do together: collectives, watching each other, ending. Imports errors and types."""
