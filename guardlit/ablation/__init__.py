"""Objectives compared on one rollout, and trainings of each side by side. Imports training and the rooms below it."""
