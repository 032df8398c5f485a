"""`guardlit evaluate`: base model, checkpoints and exported weights under gold scorers, in one table."""

from guardlit.gold.settings import Gold as Gold
