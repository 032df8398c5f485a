"""Keeps warnings and hints of libraries that do not apply to guardlit's runs out of the output."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

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
    # of a checkpoint whose ModelCheckpoint had other options, or of a run with `max_time`: its weights are read anyway
    r".*callbacks used to create the checkpoint.*: \[(['\"]((Model|Round)Checkpoint\{[^}]*\}|Timer)['\"](, )?)+\].*",
    ".*`broadcast_buffers` is deprecated.*",  # what replaces it still sends them once
)
"""Warnings of libraries about what guardlit does on purpose, or what only they can change."""

NOISE = {
    "lightning.pytorch.utilities.rank_zero": (
        "Tip: ",
        "that has Tensor Cores",  # TF32 is `trainer.tf32`, off for a reason
        "GPU available: ",
        "TPU available: ",
        "Restoring states from the checkpoint path",  # a second line says that they are restored
        "distributed_backend=",  # the batch arithmetic names the world size
    ),
    "lightning.pytorch.trainer.connectors.checkpoint_connector": ("`weights_only` was not set",),
    "lightning.fabric.utilities.distributed": ("Initializing distributed",),
    "lightning.fabric.utilities.seed": ("[rank: ",),  # rank 0 prints the seed
}
"""What log records are dropped, by logger: those that hold one of these texts."""
NOISE["lightning.fabric.utilities.rank_zero"] = NOISE["lightning.pytorch.utilities.rank_zero"]

PLAIN = {"guardlit", "guardlit_callbacks", "lightning"}
"""Packages whose warnings are for users, who have no use for the place in the code."""

_library_format = warnings.formatwarning


def quiet_libraries() -> None:
    """Filter the warnings and log records, for the whole process; on a terminal, rank 0 alone warns."""
    for message in INTENDED:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=FutureWarning, module="(diffusers|transformers|peft).*")
    if getattr(rank_zero_only, "rank", 0) > 0 and sys.stderr.isatty():  # where its lines would run into those of rank 0
        warnings.simplefilter("ignore")
    warnings.formatwarning = _format
    for name in ("httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in NOISE:
        logging.getLogger(name).addFilter(_is_no_noise)


def _is_no_noise(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in NOISE[record.name])


def _format(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """One line for a warning of a run; the library's usual lines for others, which concern code."""
    if PLAIN & set(Path(filename).parts) and issubclass(category, UserWarning):
        return f"warning: {message}\n"
    return _library_format(message, category, filename, lineno, line)
