"""Compute, memory and disk that a run will take, before its weights load. Imports training and rooms below it."""
