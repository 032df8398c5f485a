"""Rewards and gold scores, one file a scorer."""
