"""Scorers on CLIP and BLIP networks. Imports rewards/ alone."""
