"""`guardlit evaluate`: base model, checkpoints and exported weights under gold scorers, in one table.

Imports training and the rooms below it.
"""

from guardlit.gold.settings import Gold as Gold
