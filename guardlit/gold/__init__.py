"""`guardlit evaluate`: base model, checkpoints and exported weights under gold scorers, in a table. Imports training."""

from guardlit.gold.settings import Gold as Gold
