"""Formats of exported weights, and what a model card says of them. Imports devices, folders, weights."""
