"""Text read back from images. Imports rewards/ alone."""
