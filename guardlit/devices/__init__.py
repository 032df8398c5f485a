"""What guardlit knows of devices: clocks, memory, float32 and copies that do not wait. Imports errors and types."""
