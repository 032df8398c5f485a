"""Objectives compared on one rollout. Imports training and the rooms below it."""
