"""Policies, one file a model family; only these use diffusers, peft. Imports errors, types, files, assets, devices."""

from guardlit.policies.base import FlowPolicy as FlowPolicy
from guardlit.policies.diffusers_base import DiffusersPolicy as DiffusersPolicy
from guardlit.policies.flux import FluxPolicy as FluxPolicy
from guardlit.policies.flux2_klein import Flux2KleinPolicy as Flux2KleinPolicy
from guardlit.policies.qwen_image import QwenImagePolicy as QwenImagePolicy
from guardlit.policies.sd3 import SD3Policy as SD3Policy
from guardlit.policies.weights.lora import LoRA as LoRA
