"""Rewards and gold scores, one file a scorer.

Importing this package is cheap: transformers, open_clip, torchvision and PIL wait until a scorer is set up or scores.
"""

from guardlit.rewards.base import Scorer as Scorer
from guardlit.rewards.clip.aesthetic import Aesthetic as Aesthetic
from guardlit.rewards.clip.clipscore import CLIPScore as CLIPScore
from guardlit.rewards.clip.hpsv2 import HPSv2 as HPSv2
from guardlit.rewards.clip.imagereward import ImageReward as ImageReward
from guardlit.rewards.clip.pickscore import PickScore as PickScore
from guardlit.rewards.clip.torchmetrics import TorchmetricsClip as TorchmetricsClip
from guardlit.rewards.clip.torchmetrics import inception as inception
from guardlit.rewards.composite import Affine as Affine
from guardlit.rewards.composite import Composite as Composite
from guardlit.rewards.composite import Term as Term
from guardlit.rewards.digits.scorers import DigitDiversity as DigitDiversity
from guardlit.rewards.digits.scorers import DigitGold as DigitGold
from guardlit.rewards.digits.scorers import DigitProbability as DigitProbability
from guardlit.rewards.digits.scorers import DigitRealism as DigitRealism
from guardlit.rewards.geneval.rules import task_means as task_means
from guardlit.rewards.geneval.scorer import GenEval as GenEval
from guardlit.rewards.jpeg import JPEGCompressibility as JPEGCompressibility
from guardlit.rewards.network import NetworkScorer as NetworkScorer
from guardlit.rewards.network import Placement as Placement
from guardlit.rewards.ocr.scorer import OCR as OCR
from guardlit.rewards.remote.pickle_protocol import PickleReward as PickleReward
from guardlit.rewards.remote.scorer import RemoteReward as RemoteReward
from guardlit.rewards.remote.unifiedreward import UnifiedReward as UnifiedReward
