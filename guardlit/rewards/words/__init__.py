"""Gold scores of the tiny world of signs. Imports assets, errors, files, types, the modules of rewards."""

from guardlit.rewards.words.scorers import WordBackground as WordBackground
from guardlit.rewards.words.scorers import WordColor as WordColor
from guardlit.rewards.words.scorers import WordDiversity as WordDiversity
from guardlit.rewards.words.scorers import WordRealism as WordRealism
