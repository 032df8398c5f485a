"""Scorers of images, and the reward that a run makes of them. Imports errors, files, types, advantage, assets, devices.

Importing this package is cheap: transformers, open_clip, torchvision and PIL are imported when a scorer is set up or
scores.
"""

from guardlit.rewards.base import Scorer as Scorer
from guardlit.rewards.clip import Aesthetic as Aesthetic
from guardlit.rewards.clip import CLIPScore as CLIPScore
from guardlit.rewards.clip import HPSv2 as HPSv2
from guardlit.rewards.clip import ImageReward as ImageReward
from guardlit.rewards.clip import PickScore as PickScore
from guardlit.rewards.clip import TorchmetricsClip as TorchmetricsClip
from guardlit.rewards.clip import inception as inception
from guardlit.rewards.composite import Composite as Composite
from guardlit.rewards.digits import DigitDiversity as DigitDiversity
from guardlit.rewards.digits import DigitGold as DigitGold
from guardlit.rewards.digits import DigitProbability as DigitProbability
from guardlit.rewards.digits import DigitRealism as DigitRealism
from guardlit.rewards.dino import DINO as DINO
from guardlit.rewards.geneval import GenEval as GenEval
from guardlit.rewards.geneval import task_means as task_means
from guardlit.rewards.jpeg import JPEGCompressibility as JPEGCompressibility
from guardlit.rewards.network import NetworkScorer as NetworkScorer
from guardlit.rewards.network import Placement as Placement
from guardlit.rewards.ocr import OCR as OCR
from guardlit.rewards.remote import PickleReward as PickleReward
from guardlit.rewards.remote import RemoteReward as RemoteReward
from guardlit.rewards.remote import UnifiedReward as UnifiedReward
from guardlit.rewards.reward import Reward as Reward
from guardlit.rewards.term import Affine as Affine
from guardlit.rewards.term import Term as Term
from guardlit.rewards.words import WordBackground as WordBackground
from guardlit.rewards.words import WordColor as WordColor
from guardlit.rewards.words import WordDiversity as WordDiversity
from guardlit.rewards.words import WordRealism as WordRealism
