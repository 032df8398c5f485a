"""Rewards and gold scores, one file a scorer.

Importing this package is cheap: transformers, open_clip, torchvision and PIL wait until a scorer is set up or scores.
"""

from guardlit.rewards.aesthetic import Aesthetic as Aesthetic
from guardlit.rewards.base import Scorer as Scorer
from guardlit.rewards.clipscore import CLIPScore as CLIPScore
from guardlit.rewards.composite import Affine as Affine
from guardlit.rewards.composite import Composite as Composite
from guardlit.rewards.composite import Term as Term
from guardlit.rewards.digits import DigitDiversity as DigitDiversity
from guardlit.rewards.digits import DigitGold as DigitGold
from guardlit.rewards.digits import DigitProbability as DigitProbability
from guardlit.rewards.digits import DigitRealism as DigitRealism
from guardlit.rewards.for_torchmetrics import TorchmetricsClip as TorchmetricsClip
from guardlit.rewards.for_torchmetrics import inception as inception
from guardlit.rewards.geneval import GenEval as GenEval
from guardlit.rewards.geneval_rules import task_means as task_means
from guardlit.rewards.hpsv2 import HPSv2 as HPSv2
from guardlit.rewards.imagereward import ImageReward as ImageReward
from guardlit.rewards.jpeg import JPEGCompressibility as JPEGCompressibility
from guardlit.rewards.network import NetworkScorer as NetworkScorer
from guardlit.rewards.network import Placement as Placement
from guardlit.rewards.ocr import OCR as OCR
from guardlit.rewards.pickscore import PickScore as PickScore
from guardlit.rewards.remote import RemoteReward as RemoteReward
from guardlit.rewards.remote_pickle import PickleReward as PickleReward
from guardlit.rewards.unifiedreward import UnifiedReward as UnifiedReward
