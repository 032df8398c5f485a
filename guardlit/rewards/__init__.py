"""Rewards and gold scores, one file a scorer.

Importing this package is cheap: transformers, torchvision and PIL are imported when a scorer is set up or scores.
"""

from guardlit.rewards.base import Scorer as Scorer
from guardlit.rewards.composite import Composite as Composite
from guardlit.rewards.composite import Term as Term
from guardlit.rewards.digits import DigitDiversity as DigitDiversity
from guardlit.rewards.digits import DigitGold as DigitGold
from guardlit.rewards.digits import DigitProbability as DigitProbability
from guardlit.rewards.digits import DigitRealism as DigitRealism
from guardlit.rewards.jpeg import JPEGCompressibility as JPEGCompressibility
from guardlit.rewards.network import NetworkScorer as NetworkScorer
from guardlit.rewards.network import Placement as Placement
from guardlit.rewards.pickscore import PickScore as PickScore
from guardlit.rewards.remote import RemoteReward as RemoteReward
from guardlit.rewards.remote_pickle import PickleReward as PickleReward
