"""Scorers that run on a server, over HTTP. Imports errors, types, the modules of rewards."""

from guardlit.rewards.remote.pickle_protocol import PickleReward as PickleReward
from guardlit.rewards.remote.scorer import RemoteReward as RemoteReward
from guardlit.rewards.remote.unifiedreward import UnifiedReward as UnifiedReward
