"""Objectives compared on one rollout. Imports training."""
