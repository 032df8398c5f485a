"""Scorers of the tiny world of handwritten digits. Imports assets, errors, files, types, the modules of rewards."""

from guardlit.rewards.digits.scorers import DigitDiversity as DigitDiversity
from guardlit.rewards.digits.scorers import DigitGold as DigitGold
from guardlit.rewards.digits.scorers import DigitProbability as DigitProbability
from guardlit.rewards.digits.scorers import DigitRealism as DigitRealism
