"""`guardlit plan`: what a configuration will cost, found before any weights load."""
