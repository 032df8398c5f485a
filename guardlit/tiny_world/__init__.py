"""Builds the bundled digits world. Imports assets and rewards; nothing imports it."""
