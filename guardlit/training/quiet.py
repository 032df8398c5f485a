"""Keeps warnings and hints of libraries that do not apply to guardlit's runs out of the output."""

from __future__ import annotations

import logging
import warnings

INTENDED = (
    ".*does not have many workers.*",
    ".*Total length of `list` across ranks is zero.*",  # no validation prompts
    ".*dataloader is not resumable.*",
    ".*module\\(s\\) in eval mode at the start of training.*",
    ".*You have overridden `transfer_batch_to_device`.*",
    ".*Experiment logs directory .* exists and is not empty.*",  # run.json and the like; metrics.csv is new
    ".*isinstance\\(treespec, LeafSpec\\).*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*The dirpath has changed from .*",  # a resumed run has its own folder
    ".*`broadcast_buffers` is deprecated.*",  # what replaces it still sends them once
)
"""Warnings of libraries about what guardlit does on purpose, or what only they can change."""

HINTS = ("Tip: ", "that has Tensor Cores")
"""Advice of Lightning; TF32 is `trainer.tf32`, off for a reason."""


def quiet_libraries() -> None:
    """Filter the warnings and log records, for the whole process."""
    for message in INTENDED:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning, module="(diffusers|transformers|peft).*")
    for name in ("httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_no_hint)


def _no_hint(record: logging.LogRecord) -> bool:
    return not any(hint in record.getMessage() for hint in HINTS)
