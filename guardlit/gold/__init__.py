"""`guardlit evaluate`: base model, checkpoints and exported weights under gold scorers, one table. Imports training."""

from guardlit.gold.settings import Gold as Gold
