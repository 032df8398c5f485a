"""What several tests stand on, each part with a reason of its own."""
