"""Scorers on CLIP and BLIP networks. Imports devices, errors, files, types, the modules of rewards."""

from guardlit.rewards.clip.aesthetic import Aesthetic as Aesthetic
from guardlit.rewards.clip.clipscore import CLIPScore as CLIPScore
from guardlit.rewards.clip.hpsv2 import HPSv2 as HPSv2
from guardlit.rewards.clip.imagereward import ImageReward as ImageReward
from guardlit.rewards.clip.pickscore import PickScore as PickScore
from guardlit.rewards.clip.torchmetrics import TorchmetricsClip as TorchmetricsClip
from guardlit.rewards.clip.torchmetrics import inception as inception
