"""Gold scores of base model, checkpoints and exported weights in one table. Imports training and the rooms below it."""

from guardlit.gold.settings import Gold as Gold
