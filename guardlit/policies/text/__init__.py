"""Prompts encoded once and kept on disk. Imports policies/ alone."""
