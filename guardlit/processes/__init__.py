"""What the ranks of a run do together: collectives, phases, the watchdog, shutdown. Imports errors and types."""
