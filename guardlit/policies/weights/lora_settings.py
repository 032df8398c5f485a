"""What a LoRA's settings mean for the scale of each module, and which settings cannot be applied."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from guardlit.errors import GuardlitError

INITS = (None, True, False, "true", "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the base as it is; PiSSA and others train on a changed base."""
APPLIED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias")
WITHOUT_EFFECT = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "task_type"),
    *("inference_mode", "base_model_name_or_path", "revision", "peft_version", "auto_mapping", "fan_in_fan_out"),
    *("megatron_config", "megatron_core", "loftq_config", "eva_config", "qalora_group_size", "runtime_config"),
    *("ensure_weight_tying", "init_lora_weights", "bias", "peft_type"),
)
"""Settings that matter in training only, or that are checked below."""


class Settings:
    """Scale and kind of each module's update.

    Args:
        values: under peft's names; empty for a file that says nothing.

    Raises:
        GuardlitError: a setting whose effect is not known here.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        kind = str(values.get("peft_type") or "LORA").rpartition(".")[2].upper()
        if kind != "LORA":
            raise GuardlitError(f"it is a {kind} adapter of peft, not a LoRA")
        if (init := values.get("init_lora_weights")) not in INITS:
            raise GuardlitError(f"it was made with init_lora_weights={init}, which changes the base model's weights")
        if (bias := values.get("bias") or "none") != "none":
            raise GuardlitError(f"it was trained with bias={bias}: biases of the base model are not in a LoRA")
        known = {*APPLIED, *WITHOUT_EFFECT}
        if unknown := sorted(key for key, value in values.items() if value and key not in known):
            raise GuardlitError(f"its setting {unknown[0]}={values[unknown[0]]} is not supported")
        self.dora = bool(values.get("use_dora"))
        self._values = values
        self._patterns = {name: _compiled(values.get(name) or {}) for name in ("rank_pattern", "alpha_pattern")}

    def scale(self, module: str, rank: int, tensor: Tensor | None) -> float:
        """The factor alpha / r of one module, or alpha / sqrt(r) with rslora; 1 if no alpha is known.

        Args:
            module: its name in the file, without prefix.
            rank: of its tensors.
            tensor: its own alpha in the file.

        Raises:
            GuardlitError: a rank or an alpha that disagrees with the file's tensors.
        """
        stated = self._of("r", "rank_pattern", module)
        if stated is not None and stated != rank:
            raise GuardlitError(f"its settings give '{module}' rank {stated:g}, and its tensors have rank {rank}")
        alpha = self._of("lora_alpha", "alpha_pattern", module)
        if tensor is not None:
            alpha = self._agreed(alpha, tensor, module)
        root = self._values.get("use_rslora")
        if alpha is None:
            if root or "r" in self._values:
                raise GuardlitError(f"its settings give no lora_alpha, and its tensors none for '{module}'")
            return 1.0
        if not (math.isfinite(alpha) and alpha != 0):
            raise GuardlitError(f"alpha of '{module}' is {alpha:g}")
        return alpha / (math.sqrt(rank) if root else rank)

    def _agreed(self, alpha: float | None, tensor: Tensor, module: str) -> float:
        if tensor.numel() != 1:
            raise GuardlitError(f"alpha of '{module}' has {tensor.numel()} numbers")
        own = float(tensor.double().item())
        if alpha is not None and "lora_alpha" in self._values and not math.isclose(alpha, own, rel_tol=1e-2):
            raise GuardlitError(f"alpha of '{module}' is {own:g} in its tensor and {alpha:g} in its settings")
        return own

    def _of(self, name: str, patterns: str, module: str) -> float | None:
        """A setting for one module: the first pattern that matches, as in peft, before the number for all."""
        matching = (value for pattern, value in self._patterns[patterns] if pattern.match(module))
        value = next(matching, self._values.get(name))
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError):
            raise GuardlitError(f"its setting {name}={value} is not a number") from None


def _compiled(patterns: Mapping[str, Any]) -> list[tuple[re.Pattern[str], Any]]:
    """The rule of peft for `rank_pattern` and `alpha_pattern`: a name, its end, or a regular expression of either."""
    try:
        return [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in patterns.items()]
    except (re.error, AttributeError) as error:
        raise GuardlitError(f"its rank_pattern or alpha_pattern cannot be read ({error})") from error
