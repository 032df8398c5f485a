"""What callbacks share: reading outputs, scoring, statistics, logging."""
