"""The ranks of a run and their collectives, watchdog and shutdown; Lightning's private names. Imports errors, types."""
